"""Hair on a prepared image: where it is, and the picture without it. One function for training and serving alike.

The method is DullRazor's (Lee et al. 1997, "DullRazor: a software approach to hair removal from images"): what a
morphological closing fills in and is long and thin is hair; it is replaced by the skin beside it. Ink is left alone:
it lies on skin and lesion alike, and painting over it would invent what is below.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
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
_BANDS: Final = 8  # one for each bit of a byte


def planes(pixels: Pixels) -> tuple[Pixels, ...]:
    """The channels one by one: uint8 [H, W, 3] → three of [H, W], contiguous and so many times quicker to work with."""
    return tuple(pixels[..., channel].copy() for channel in range(3))


def hair(pixels: Pixels) -> Mask:
    """Where long thin lines lie, dark or fair: bool [H, W] of a prepared image uint8 [H, W, 3]."""
    return hair_in(planes(pixels))


def hair_in(planes: Sequence[Pixels]) -> Mask:
    """`hair` of an image's `planes`."""
    # The brightest channel: hair is dark in all three, the pigment network lets red pass.
    red, green, blue = planes
    dark = _filled(np.maximum(np.maximum(red, green), blue))
    total = red.astype(np.uint16)
    total += green
    total += blue
    fair = _filled(np.invert((total // 3).astype(np.uint8)))
    # An opening of the thresholded picture is the thresholded opening, and one bit a pixel is less to move.
    return _lines(np.maximum(dark, fair) > _CONTRAST)


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
    """What lasts along a straight line of `_LENGTH`: the union of the openings over all directions.

    Eight bands of rows are worked on at once, as the bits of a byte; each holds as many rows of its neighbours as a line
    can reach.
    """
    height, width = mask.shape
    rows, wide = -(-height // _BANDS), width + _LENGTH
    picture = np.zeros((rows * _BANDS + 2 * _LENGTH, wide), np.uint8)
    picture[_LENGTH : _LENGTH + height, :width] = mask
    bands = [picture[band * rows : (band + 1) * rows + 2 * _LENGTH].reshape(-1) for band in range(_BANDS)]
    packed = bands[-1].copy()
    for band in bands[-2::-1]:
        packed += packed  # quicker than a shift
        packed |= band
    found, scratch = np.zeros_like(packed), [np.empty_like(packed), np.empty_like(packed)]
    for down, right in _DIRECTIONS:
        count, step = round(_LENGTH / float(np.hypot(down, right))), down * wide + right
        starts = _extreme(packed, step, count, np.bitwise_and, scratch)
        if not starts.any():
            continue  # as in most directions of most images
        opened = _extreme(starts, step, count, np.bitwise_or, scratch)
        known = found[(count - 1) * step :][: opened.size]
        np.bitwise_or(known, opened, out=known)
    inside = found.reshape(-1, wide)[_LENGTH:-_LENGTH, :width]
    unpacked = np.concatenate([inside & (1 << bit) for bit in range(_BANDS)])
    lines: Mask = unpacked[:height] != 0
    return lines


def _filled(image: Pixels) -> Pixels:
    """How much the largest closing over four directions brightens dark structures thinner than `_WIDTH`.

    uint8 [H, W] → the same shape.
    """
    padded = _edged(image, _WIDTH)
    flat = padded.reshape(-1)
    found, scratch = flat.copy(), [np.empty_like(flat), np.empty_like(flat)]
    for down, right in _ACROSS:
        step = down * padded.shape[1] + right
        brightest = _extreme(flat, step, _WIDTH, np.maximum, scratch)
        closed = _extreme(brightest, step, _WIDTH, np.minimum, scratch)
        known = found[(_WIDTH - 1) * step :][: closed.size]
        np.maximum(known, closed, out=known)
    found -= flat
    brightened: Pixels = found.reshape(padded.shape)[_WIDTH:-_WIDTH, _WIDTH:-_WIDTH]
    return brightened


def _edged(image: Pixels, margin: int) -> Pixels:
    """`np.pad` of mode "edge", at a fraction of its time."""
    height, width = image.shape
    padded = np.empty((height + 2 * margin, width + 2 * margin), image.dtype)
    within = padded[margin:-margin]
    within[:, margin:-margin] = image
    within[:, :margin], within[:, -margin:] = image[:, :1], image[:, -1:]
    padded[:margin], padded[-margin:] = within[0], within[-1]
    return padded


def _extreme(reached: Pixels, step: int, count: int, extreme: np.ufunc, scratch: list[Pixels]) -> Pixels:
    """The extreme over each pixel of a flattened picture and the `count` − 1 next ones, each `step` further.

    Two of them, with opposite extremes, are a closing or an opening by a line; a margin as wide as the line is long keeps
    neighbouring rows apart. The result lies in one of `scratch`, whose first is the one to write to next, and lacks the
    pixels whose lines leave the picture. Doubling makes an extreme log2(`count`) passes over contiguous memory (van Herk's
    idea with whole-array operations).
    """
    for jump in _jumps(count):
        size = reached.size - step * jump
        reached = extreme(reached[:size], reached[-size:], out=scratch[0][:size])
        scratch.reverse()
    return reached


@cache
def _jumps(count: int) -> tuple[int, ...]:
    """By how much to move what has been reached until each place has reached `count` of them."""
    jumps, done = [], 1
    while done < count:
        jumps.append(min(done, count - done))
        done += jumps[-1]
    return tuple(jumps)


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
