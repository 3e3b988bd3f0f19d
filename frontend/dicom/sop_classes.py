"""Which storage SOP classes are taken, at every DICOM door."""

from __future__ import annotations

from typing import Final

from dermserve.settings import Settings

SOP_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.77.1.7",  # dermoscopic photography
    "1.2.840.10008.5.1.4.1.1.77.1.4",  # VL photographic
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.7.2",  # multi-frame grayscale byte secondary capture
    "1.2.840.10008.5.1.4.1.1.7.4",  # multi-frame true colour secondary capture
)
"""What is taken unless the settings say otherwise."""


def taken(settings: Settings) -> tuple[str, ...]:
    """UIDs of the SOP classes that are taken."""
    return tuple(part.strip() for part in settings.dicom_sop_classes.split(",") if part.strip()) or SOP_CLASSES
