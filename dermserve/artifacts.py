"""Hair on a prepared image: where it is, and the picture without it. One function for training and serving alike.

The method is DullRazor's (Lee et al. 1997, "DullRazor: a software approach to hair removal from images"): what a
morphological closing fills in and is long and thin is hair; it is replaced by the skin beside it. Ink is left alone:
it lies on skin and lesion alike, and painting over it would invent what is below.
"""

from __future__ import annotations

from typing import Final

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
    red, green, blue = (pixels[..., channel] for channel in range(3))
    views = np.empty((2, *pixels.shape[:2]), np.uint8)
    np.maximum(np.maximum(red, green), blue, out=views[0])  # an order of magnitude quicker than `max(axis=2)`
    views[1] = (red.astype(np.uint16) + green + blue) // 3
    np.invert(views[1], out=views[1])
    filled = _filled(views)
    # An opening of the thresholded picture is the thresholded opening, and one bit a pixel is less to move.
    return _lines(np.maximum(filled[0], filled[1]) > _CONTRAST)


def remove(pixels: Pixels) -> Pixels:
    """Paint hair over with the skin beside it: uint8 [H, W, 3] → a new array of the same shape.

    Each hair pixel becomes the mean of what is no hair in the smallest window around it that consists of it to a
    quarter; all other pixels stay as they are.
    """
    mask = _grown(hair(pixels))
    clean = np.array(pixels)
    valid = np.invert(mask).astype(np.int32)
    known = np.concatenate([pixels * valid[..., None], valid[..., None]], axis=2)
    everywhere = np.ones((*mask.shape, 1), np.int32)
    left = mask
    for radius in (3, 6, 12, 24, 48):
        if not left.any():
            break
        sums = _box(known, radius)
        enough = left & (sums[..., 3] * 4 >= _box(everywhere, radius)[..., 0])
        clean[enough] = sums[enough][:, :3] // sums[enough][:, 3:]
        left = left & ~enough
    return clean


def _lines(mask: Mask) -> Mask:
    """What lasts along a straight line of `_LENGTH`: the union of the openings over all directions."""
    padded = np.pad(mask.view(np.uint8), _LENGTH)
    flat, found = padded.reshape(-1), np.zeros(padded.size, np.uint8)
    for down, right in _DIRECTIONS:
        count = round(_LENGTH / float(np.hypot(down, right)))
        step = down * padded.shape[1] + right
        eroded = _along(flat, step, count, np.bitwise_and)
        if eroded.any():
            np.bitwise_or(found, _along(eroded, -step, count, np.bitwise_or), out=found)
    inside: Mask = found.reshape(padded.shape)[_LENGTH:-_LENGTH, _LENGTH:-_LENGTH].view(np.bool_)
    return inside


def _filled(images: Pixels) -> Pixels:
    """How much the largest closing over four directions brightens dark structures thinner than `_WIDTH`.

    uint8 [N, H, W] → the same shape.
    """
    padded = np.pad(images, ((0, 0), (_WIDTH, _WIDTH), (_WIDTH, _WIDTH)), mode="edge")
    flat = padded.reshape(-1)
    found = flat.copy()
    for down, right in _ACROSS:
        step = down * padded.shape[2] + right
        dilated = _along(flat, step, _WIDTH, np.maximum)
        np.maximum(found, _along(dilated, -step, _WIDTH, np.minimum), out=found)
    brightened: Pixels = (found - flat).reshape(padded.shape)[:, _WIDTH:-_WIDTH, _WIDTH:-_WIDTH]
    return brightened


def _along(flat: Pixels, step: int, count: int, extreme: np.ufunc) -> Pixels:
    """The extreme over each pixel itself and the `count` − 1 next ones, each `step` further in the flattened picture.

    A margin as wide as the line is long keeps neighbouring rows apart. Doubling makes it log2(count) passes over
    contiguous memory (van Herk's idea with whole-array operations).
    """
    reached, done = flat, 1
    while done < count:
        jump = min(done, count - done)
        away, further = abs(step) * jump, reached.copy()
        here, there = (slice(None, -away), slice(away, None)) if step > 0 else (slice(away, None), slice(None, -away))
        extreme(reached[here], reached[there], out=further[here])
        reached, done = further, done + jump
    return reached


def _grown(mask: Mask) -> Mask:
    """The mask and its eight neighbours: the soft edges of a hair belong to it."""
    padded = np.pad(mask, 1)
    wide = padded[:, 1:-1] | padded[:, :-2] | padded[:, 2:]
    grown: Mask = wide[1:-1] | wide[:-2] | wide[2:]
    return grown


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
