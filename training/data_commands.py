"""The commands `dermserve data check` and `dermserve data prepare`."""

from __future__ import annotations

import click


@click.group()
def data() -> None:
    """Check and prepare folders of ISIC images before training."""
