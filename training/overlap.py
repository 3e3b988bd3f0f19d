"""Test images that show a lesion which a labelled image shows too: other files with other ids, so only pictures tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.check import likeness
from training.pixels import Pixels, reduced

_GREY: Final = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma
_THUMBNAIL: Final = 32


@dataclass(frozen=True)
class Overlap:
    """Rows of the test set, each once: those alike to any labelled image, and of these those alike to a training image."""

    labelled: NDArray[np.int64]
    trained: NDArray[np.int64]


def find(test: Pixels, labelled: Pixels, train: NDArray[np.int64]) -> Overlap:
    """Compare every test image with every labelled one, turned and mirrored, as `dermserve data check` does.

    Args:
        test: prepared images, uint8 [N, 300, 300, 3].
        labelled: prepared images of training and validation.
        train: rows of `labelled` that were trained on.
    """
    thumbnails = np.concatenate([_thumbnails(test), _thumbnails(labelled)])
    across = [(i, j - len(test)) for i, j, _ in likeness.pairs(thumbnails) if i < len(test) <= j]
    used = set(train.tolist())
    return Overlap(_rows(i for i, _ in across), _rows(i for i, j in across if j in used))


def limit(name: str, images: int, found: Overlap) -> str:
    """A sentence for the card."""
    return (
        f"{len(found.labelled):,} of the {images:,} images of {name} seem to show a lesion that a labelled image shows as "
        f"well, {len(found.trained):,} of them one in training."
    )


def _thumbnails(pixels: Pixels) -> likeness.Grey:
    small = reduced(pixels, np.arange(len(pixels)), _THUMBNAIL)
    grey: likeness.Grey = (small @ _GREY).round().astype(np.uint8)
    return grey


def _rows(found: Iterable[int]) -> NDArray[np.int64]:
    return np.array(sorted(set(found)), np.int64)
