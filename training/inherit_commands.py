"""`dermserve inherit`: ImageNet features for EfficientNet-B3 where timm's own weights cannot be downloaded."""

from __future__ import annotations

import click


@click.command()
def inherit() -> None:
    """Make a B3 checkpoint that holds the features of an ImageNet-trained EfficientNet-Lite2."""
    raise click.UsageError("not built yet")
