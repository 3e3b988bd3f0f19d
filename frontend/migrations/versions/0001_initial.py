"""Accounts, sessions, API keys and results."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_REAL_ARRAY: sa.ARRAY[float] = sa.ARRAY(sa.REAL())
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text()),
        sa.Column("is_admin", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "web_sessions",
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_web_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_web_sessions_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_web_sessions_user_id", "web_sessions", ["user_id"])
    op.create_index("ix_web_sessions_expires_at", "web_sessions", ["expires_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("last_used_at", _TIME),
        sa.Column("revoked_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_sha256", name="uq_api_keys_key_sha256"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_api_keys_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])
    op.create_table(
        "predictions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.clock_timestamp(), nullable=False),
        sa.Column("filename", sa.Text()),
        sa.Column("image_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("image_format", sa.Text(), nullable=False),
        sa.Column("image_width", sa.Integer(), nullable=False),
        sa.Column("image_height", sa.Integer(), nullable=False),
        sa.Column("probabilities", _REAL_ARRAY, nullable=False),
        sa.Column("diagnoses", _REAL_ARRAY, nullable=False),
        sa.Column("cam", sa.ARRAY(sa.REAL(), dimensions=2), nullable=False),
        sa.Column("region", _REAL_ARRAY, nullable=False),
        sa.Column("operating_point", sa.Text(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("refer", sa.Boolean(), nullable=False),
        sa.Column("quality_flags", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("abstained", sa.Boolean(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("model_precision", sa.Text(), nullable=False),
        sa.Column("model_runtime", sa.Text(), nullable=False),
        sa.Column("preprocessing", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_predictions_owner_id_idempotency_key"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_predictions_owner_id", ondelete="CASCADE"),
    )
    op.create_index(
        "ix_predictions_history", "predictions", ["owner_id", sa.text("created_at DESC"), sa.text("id DESC")]
    )


def downgrade() -> None:
    for table in ("predictions", "api_keys", "web_sessions", "users"):
        op.drop_table(table)
