"""Alembic's entry: works on the connection handed over by `frontend.database`, in the caller's transaction."""

from alembic import context

from frontend.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
