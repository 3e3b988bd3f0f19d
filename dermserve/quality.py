"""Quality flags of a prepared image: blurry, hairy, marker_pen, color_tint, the names that the ISIC Archive uses.

They speak of the photograph, not of the lesion, and need no network: whole-array arithmetic on 300×300 pixels. Each
score is 0…1 and reaches ½ where the flag is raised; `docs/abstention.md` says on how many images of the public sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dermserve import artifacts
from dermserve.labels import QUALITY_FLAGS

Pixels = NDArray[np.uint8]
Sums = NDArray[np.uint16]

THRESHOLDS: Final = dict.fromkeys(QUALITY_FLAGS, 0.5)
"""What goes into a model card: a flag is raised from here on."""

_PLANE: Final = 0.5
"""Ratio of the steps between means of 2×2 pixels to those between means of 4×4 where there is no detail at all."""
_DETAIL: Final = 0.04
"""What the ratio exceeds `_PLANE` by at the flag. Images of 200×150 pixels enlarged to 300 keep more than that."""
_LUMA: Final = (np.float32(0.299), np.float32(0.587), np.float32(0.114))
_HAIR: Final = 0.06
"""Share of the picture under hair at the flag."""
_INK: Final = 0.0025
"""Share of the picture under ink at the flag."""
_INK_BLUER: Final = 0.30
"""How much larger ln(B/R) or ln(G/R) is in ink than in the skin at the picture's rim."""
_INK_CHROMA: Final = 25
"""Grey levels between an ink's largest and smallest channel; rulers, glass and scales have less."""
_INK_WIDTH: Final = 45
"""Pixels: wider spots of colour are stickers, not strokes."""
_LOG: Final = np.log(np.arange(1, 257, dtype=np.float32))
"""ln(level + 1) of each grey level."""
# Median colour of 11,220 training images as ln(R/G), ln(B/G): mean and standard deviation; the two are uncorrelated.
_SKIN: Final = np.array([[0.288, 0.014], [0.171, 0.098]], np.float32)
_TINT: Final = 4.2
"""Standard deviations from the mean colour at the flag."""


def measure(pixels: Pixels) -> NDArray[np.float32]:
    """Scores of a prepared image (uint8 [300, 300, 3]): float32 [4] in the order of `labels.QUALITY_FLAGS`, 0…1."""
    planes = artifacts.planes(pixels)
    halves = [_halved(plane) for plane in planes]
    scores = (_blurry(halves), _hairy(planes), _marker_pen(halves), _color_tint(planes))
    return np.array(scores, np.float32)


def _blurry(halves: Sequence[Sums]) -> float:
    """How little detail the picture has against its coarse structure, so that a smooth lesion is not called blurry.

    Steps between means of 2×2 pixels are compared with steps between means of 4×4: a plane or anything blurred has half
    of them, edges and texture have more. Single pixels would measure the noise and blocks of JPEG instead.
    """
    # ITU-R BT.601; not rounded, because steps of less than a level count
    red, green, blue = (half * weight for half, weight in zip(halves, _LUMA, strict=True))
    fine = (red + green + blue) / 4
    rows = fine[0::2] + fine[1::2]
    coarse = (rows[:, 0::2] + rows[:, 1::2]) / 4
    excess = max(0.0, _steps(fine) / (_steps(coarse) + 0.1) - _PLANE)
    return _DETAIL / (_DETAIL + excess)


def _hairy(planes: Sequence[Pixels]) -> float:
    hair = artifacts.hair_in(planes)
    share = np.count_nonzero(hair) / hair.size  # as its mean, which takes as long as a tenth of the search for it
    return share / (share + _HAIR)


def _marker_pen(halves: Sequence[Sums]) -> float:
    """Strokes and dots that are far bluer or greener than the skin at the rim. The middle does not count: that is where
    the lesion is, and blue naevi and veils are blue, too.
    """
    red, green, blue = (((half + 2) >> 2).astype(np.uint8) for half in halves)
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    seen = largest > 40  # black says nothing about colour
    colourful = (largest > red) & seen & (largest - smallest > _INK_CHROMA)
    if not (colourful & ~_middle(seen.shape, 0.5)).any():
        return 0.0  # as on nearly all images: skin is red
    rim = seen & ~_middle(seen.shape, 0.9)
    if rim.mean() < 0.02:
        return 0.0
    log_red = _LOG[red]
    bluer, greener = _LOG[blue] - log_red, _LOG[green] - log_red
    ink = colourful & (
        ((bluer - np.median(bluer[rim]) > _INK_BLUER) & (blue > red))
        | ((greener - np.median(greener[rim]) > _INK_BLUER) & (green > red))
    )
    strokes = ink & ~_opened(ink, _INK_WIDTH // 2) & ~_middle(ink.shape, 0.5)
    share = float(strokes.mean())
    return share / (share + _INK)


def _color_tint(planes: Sequence[Pixels]) -> float:
    coarse = [plane[::4, ::4].copy() for plane in planes]
    lit = np.maximum(np.maximum(coarse[0], coarse[1]), coarse[2]) > 60
    if np.count_nonzero(lit) < lit.size // 10:
        lit[:] = True
    red, green, blue = np.array([_median(levels[lit]) for levels in coarse], np.float32) + 1
    chroma = np.array([np.log(red / green), np.log(blue / green)], np.float32)
    away = float(np.linalg.norm((chroma - _SKIN[0]) / _SKIN[1]))
    return away**4 / (away**4 + _TINT**4)


def _median(levels: Pixels) -> float:
    """As `np.median`, many times quicker for as few different values."""
    reached = np.cumsum(np.bincount(levels, minlength=256))
    below, above = np.searchsorted(reached, ((levels.size - 1) // 2, levels.size // 2), side="right")
    return float(below + above) / 2


def _halved(plane: Pixels) -> Sums:
    """Sums of 2×2 pixels: uint8 [2H, 2W] → uint16 [H, W]."""
    # Two neighbours at once as one number of 16 bits: contiguous memory is many times quicker than every second byte.
    pairs = plane.view(np.uint16)
    sums = pairs & 255
    sums += pairs >> 8
    return sums[0::2] + sums[1::2]


def _steps(grey: NDArray[np.float32]) -> float:
    """Root mean square difference between neighbours, in grey levels."""
    down, right = (grey[1:] - grey[:-1]).ravel(), (grey[:, 1:] - grey[:, :-1]).ravel()
    return float(np.sqrt(down @ down / down.size + right @ right / right.size))


def _opened(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The part of the mask that a square of `side` pixels fits into, grown back."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    size = side // 2 * 2 + 1
    # A box mean of 255 says that the whole square is set: far quicker than a minimum over as many pixels.
    core = np.asarray(picture.filter(ImageFilter.BoxBlur(size // 2))) == 255
    grown = Image.fromarray(core.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(size // 2 + 3))
    return np.asarray(grown) > 0


@cache
def _middle(shape: tuple[int, ...], radius: float) -> NDArray[np.bool_]:
    """An ellipse around the middle; `radius` 1 touches the edges."""
    down, right = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    inside: NDArray[np.bool_] = down**2 + right**2 < radius**2
    inside.flags.writeable = False  # every caller gets this one
    return inside
