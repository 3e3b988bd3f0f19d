"""The frame crop: where the picture is inside the black border of a contact dermatoscope or the corners of its round view."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""

# Brightest channel of a pixel that still counts as black: above the sensor noise of a frame, below dark pigment.
_BLACK: Final = 24
_LEAST_KEPT: Final = 0.15
_MOST_KEPT: Final = 0.98


def frame(pixels: NDArray[np.uint8]) -> Box:
    """Find the picture inside a black frame: borders of a contact dermatoscope, or the dark corners of its round view.

    Returns (left, top, right, bottom) in pixels, right and bottom exclusive. A row or column stays when at least half
    of it (within the box of everything that is not black) is brighter than black; for a circle that keeps 87 % of its
    diameter. The whole image is returned when there is no frame, or when so little is bright that the guess is unsafe.
    """
    height, width = pixels.shape[:2]
    apart = step(height, width)
    return frame_of(pixels[::apart, ::apart], height, width)


def step(height: int, width: int) -> int:
    """How far apart, in pixels, the rows and columns are that `frame` looks at."""
    return max(1, min(height, width) // 150)


def frame_of(sampled: NDArray[np.uint8], height: int, width: int) -> Box:
    """What `frame` finds, from `pixels[::step, ::step]` of an image of `height` by `width` pixels."""
    apart = step(height, width)
    # Channel by channel: NumPy's max over an axis of three takes five times as long.
    bright = np.maximum(np.maximum(sampled[..., 0], sampled[..., 1]), sampled[..., 2]) > _BLACK
    box = _extent(bright, 0.02)
    if box is None:
        return 0, 0, width, height
    left, top, right, bottom = box
    inner = _extent(bright[top:bottom, left:right], 0.5)
    if inner is None:
        return 0, 0, width, height
    left, top, right, bottom = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    rows, columns = bright.shape
    kept = (right - left) * (bottom - top) / (rows * columns)
    if kept < _LEAST_KEPT or kept > _MOST_KEPT:
        return 0, 0, width, height
    return left * apart, top * apart, min(width, right * apart), min(height, bottom * apart)


def _extent(mask: NDArray[np.bool_], share: float) -> Box | None:
    """First and last column and row of which more than `share` is set, as (left, top, right, bottom)."""
    columns = np.flatnonzero(mask.mean(axis=0) > share)
    rows = np.flatnonzero(mask.mean(axis=1) > share)
    if not columns.size or not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
