"""The command `dermserve serve`."""

from __future__ import annotations

import click


@click.command()
def serve() -> None:
    """Start PostgreSQL, Triton, the web server and the DICOM door, and print the address once all are ready.

    Stops everything on Ctrl-C or SIGTERM. Settings are DERMSERVE_* environment variables (docs/architecture.md).

    \b
    Examples:
      dermserve serve
      DERMSERVE_PORT=9000 DERMSERVE_STATE_DIR=/var/lib/dermserve dermserve serve
      DERMSERVE_TRITON_URL=gpu-1:8001,gpu-2:8001 DERMSERVE_DATABASE_URL=postgresql://… dermserve serve
    """
    import asyncio
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports its own set-up, step by step
    from deploy.local import serve as run
    from dermserve.errors import StartupError
    from dermserve.settings import Settings

    settings = Settings()
    click.echo("Starting PostgreSQL, Triton, the web server and the DICOM door …", err=True)
    try:
        asyncio.run(run(settings, lambda address: click.echo(f"dermserve is ready at {address} (Ctrl-C stops it)")))
    except OSError as error:
        raise StartupError(f"{error.filename or settings.state_dir}: {error.strerror}.") from error
