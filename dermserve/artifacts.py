"""Hair on a prepared image: where it is, and the picture without it. One function for training and serving alike.

The method is DullRazor's (Lee et al. 1997, "DullRazor: a software approach to hair removal from images"): what a
morphological closing fills in and is long and thin is hair; it is replaced by the skin beside it. Ink is left alone:
it lies on skin and lesion alike, and painting over it would invent what is below.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_WIDTH: Final = 9
"""Pixels at 300×300: structures thinner than this are filled in by the closing."""
_LENGTH: Final = 28
"""Pixels: what is not straight for so long is no hair but network, dots, or the weave of a ruler's digits."""
_CONTRAST: Final = 16
"""Grey levels between a hair and its surroundings."""
# Sixteen directions at most 14° apart, as whole steps (down, right); together with their length in pixels they say how
# many steps a line of `_LENGTH` has.
_DIRECTIONS: Final = tuple(
    step
    for down, right in ((0, 1), (1, 4), (1, 2), (3, 4), (1, 1), (4, 3), (2, 1), (4, 1))
    for step in ((down, right), (right, -down))
)
_ACROSS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))


def hair(pixels: Pixels) -> Mask:
    """Where long thin lines lie, dark or fair: bool [H, W] of a prepared image uint8 [H, W, 3]."""
    # The brightest channel: hair is dark in all three, the pigment network lets red pass.
    red, green, blue = (np.ascontiguousarray(pixels[..., channel]) for channel in range(3))
    bright: Pixels = np.maximum(np.maximum(red, green), blue)  # an order of magnitude quicker than `max(axis=2)`
    grey: Pixels = ((red.astype(np.uint16) + green + blue) // 3).astype(np.uint8)
    return _lines(np.maximum(_filled(bright), _filled(np.invert(grey)))) > _CONTRAST


def remove(pixels: Pixels) -> Pixels:
    """Paint hair over with the skin beside it: uint8 [H, W, 3] → a new array of the same shape.

    Each hair pixel becomes the mean of what is no hair in the smallest window around it that holds enough of it; all
    other pixels stay as they are.
    """
    mask = _grown(hair(pixels))
    clean = np.array(pixels)
    valid = np.invert(mask).astype(np.int32)
    known = np.concatenate([pixels * valid[..., None], valid[..., None]], axis=2)
    left = mask
    for radius in (3, 6, 12, 24, 48):
        if not left.any():
            break
        sums = _box(known, radius)
        enough = left & (sums[..., 3] * 4 >= (2 * radius + 1) ** 2)
        clean[enough] = sums[enough][:, :3] // sums[enough][:, 3:]
        left = left & ~enough
    return clean


def _lines(response: Pixels) -> Pixels:
    """The response that lasts along a straight line of `_LENGTH`: the largest opening over all directions."""
    found = np.zeros_like(response)
    for down, right in _DIRECTIONS:
        count = round(_LENGTH / float(np.hypot(down, right)))
        eroded = _along(response, (down, right), count, np.minimum)
        np.maximum(found, _along(eroded, (-down, -right), count, np.maximum), out=found)
    return found


def _filled(image: Pixels) -> Pixels:
    """How much the largest closing over four directions brightens dark structures thinner than `_WIDTH`."""
    padded = np.pad(image, _WIDTH, mode="edge")
    found = padded.copy()
    for down, right in _ACROSS:
        dilated = _along(padded, (down, right), _WIDTH, np.maximum)
        np.maximum(found, _along(dilated, (-down, -right), _WIDTH, np.minimum), out=found)
    return (found - padded)[_WIDTH:-_WIDTH, _WIDTH:-_WIDTH]


def _along(image: Pixels, step: tuple[int, int], count: int, extreme: np.ufunc) -> Pixels:
    """The extreme over the pixel itself and the `count` − 1 next ones in steps of (down, right); past the edge lies 0.

    Doubling makes it log2(count) passes (van Herk's idea with whole-array operations).
    """
    reached, done = image, 1
    while done < count:
        jump = min(done, count - done)
        down, right = step[0] * jump, step[1] * jump
        here, there = _shifted(image.shape, down, right)
        further = np.zeros_like(reached) if extreme is np.minimum else reached.copy()
        extreme(reached[here], reached[there], out=further[here])
        reached, done = further, done + jump
    return reached


def _shifted(shape: tuple[int, ...], down: int, right: int) -> tuple[Any, Any]:
    """Index of the pixels that have a neighbour (down, right) away, and of those neighbours."""
    height, width = shape
    here = (slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right)))
    there = (slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right)))
    return here, there


def _grown(mask: Mask) -> Mask:
    """The mask and its neighbours: the soft edges of a hair belong to it."""
    grown = mask.astype(np.uint8)
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        grown = _along(grown, step, 2, np.maximum)
    return grown.astype(np.bool_)


def _box(image: NDArray[np.int32], radius: int) -> NDArray[np.int32]:
    """Sums over windows of 2·radius + 1 pixels a side, cut at the edges: int32 [H, W, C] → the same shape."""
    for axis in (0, 1):
        total = np.cumsum(image, axis=axis, dtype=np.int32)
        size = image.shape[axis]
        upper = np.take(total, np.minimum(np.arange(size) + radius, size - 1), axis=axis)
        first = np.arange(size) - radius - 1
        lower = np.take(total, np.maximum(first, 0), axis=axis)
        lower[(slice(None),) * axis + (first < 0,)] = 0
        image = upper - lower
    return image
