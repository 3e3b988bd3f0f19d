"""Artefacts of dermoscopy drawn onto an image: hair, ink, ruler, patch, dark corners and gel bubbles.

Training draws them whatever the diagnosis is, so that none of them can tell it; the ablation draws the same kinds on
validation images to see how far a score moves. What a drawn artefact looks like is a pure function of the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

Pixels = NDArray[np.uint8]
Layer = Image.Image
"""RGBA, twice the height and width of the image that it is laid on: Pillow's lines have no smooth edge."""

_HAIR: Final = ((38, 28, 24), (62, 44, 34), (22, 18, 18), (112, 84, 56), (158, 128, 92))
_INK: Final = ((72, 40, 130), (98, 52, 150), (36, 44, 120), (24, 60, 150), (20, 20, 34), (30, 90, 110), (110, 30, 80))
_PATCH: Final = (
    (42, 92, 170),
    (28, 128, 150),
    (60, 140, 70),
    (220, 180, 40),
    (210, 110, 40),
    (200, 60, 70),
    (236, 232, 224),
    (214, 178, 148),
)


def draw(kind: str, pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Lay one artefact of `kind` (a key of `KINDS`) on an image: uint8 [H, W, 3] → a new array of the same shape."""
    height, width = pixels.shape[:2]
    layer = KINDS[kind]((2 * width, 2 * height), rng).reduce(2)
    base = Image.fromarray(pixels)
    base.paste(layer, mask=layer.getchannel("A"))
    return np.asarray(base)


class RandomArtifacts(nn.Module):
    """With probability `p` lay one artefact on the image, and with half of that a second of any kind."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 [3, H, W] → the same shape. Draws from torch's global generator."""
        chance = float(torch.rand(()))
        if chance >= self.p:
            return image
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        pixels = image.permute(1, 2, 0).numpy()
        for _ in range(2 if chance < self.p / 2 else 1):
            pixels = draw(str(rng.choice(list(KINDS))), pixels, rng)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _hair(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """A few or many bent hairs, mostly along one direction, dark or fair."""
    layer = Image.new("RGBA", size, (*_shade(rng, _HAIR, 10), 0))
    pen = ImageDraw.Draw(layer)
    unit, grain = min(size) / 600, rng.uniform(0, np.pi)
    thick = rng.uniform(2.0, 6.5) * unit
    for _ in range(rng.integers(3, 40)):
        turn, half = grain + rng.normal(0, 0.5), rng.uniform(80, 420) * unit
        along = np.array((np.cos(turn), np.sin(turn))) * half
        bend = np.array((-np.sin(turn), np.cos(turn))) * half * rng.normal(0, 0.25, (4, 1))
        course = rng.uniform((0, 0), size) + np.linspace(-1, 1, 4)[:, None] * along + bend
        colour = (*_shade(rng, (layer.getpixel((0, 0))[:3],), 8), int(rng.uniform(150, 255)))  # type: ignore[index]
        pen.line(_curve(course), fill=colour, width=max(1, round(thick * rng.uniform(0.7, 1.3))), joint="curve")
    return layer


def _ink(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Skin marker: dots, strokes, a cross, a bracket or a ring around the middle, somewhat transparent and frayed."""
    colour = _shade(rng, _INK, 15)
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    width, height = size
    unit = min(size) / 600
    thick = max(2, round(rng.uniform(10, 38) * unit))
    form = rng.choice(("dots", "strokes", "ring", "cross"))
    full = int(rng.uniform(150, 245))
    if form == "dots":
        for _ in range(rng.integers(1, 7)):
            x, y = _near_edge(size, rng)
            r = rng.uniform(8, 42) * unit
            pen.ellipse((x - r, y - r, x + r, y + r * rng.uniform(0.7, 1.3)), fill=full)
    elif form == "strokes":
        for _ in range(rng.integers(1, 5)):
            start = np.array(_near_edge(size, rng))
            course = start + np.cumsum(rng.normal(0, 90 * unit, (4, 2)), axis=0)
            pen.line(_curve(course), fill=full, width=thick, joint="curve")
    elif form == "ring":
        a, b = rng.uniform(0.3, 0.48, 2) * np.array(size)
        begin = rng.uniform(0, 360)
        box = (width / 2 - a, height / 2 - b, width / 2 + a, height / 2 + b)
        pen.arc(box, begin, begin + rng.uniform(60, 360), fill=full, width=thick)
    else:
        x, y = _near_edge(size, rng)
        r, turn = rng.uniform(25, 90) * unit, rng.uniform(0, np.pi)
        for quarter in (0, np.pi / 2):
            dx, dy = np.cos(turn + quarter) * r, np.sin(turn + quarter) * r
            pen.line((x - dx, y - dy, x + dx, y + dy), fill=full, width=thick)
    if rng.random() < 0.5:  # ink sits in the furrows of the skin
        grain = Image.fromarray(rng.uniform(90, 255, (height // 12 + 1, width // 12 + 1)).astype(np.uint8))
        mask = Image.fromarray(
            (np.asarray(mask, np.uint16) * np.asarray(grain.resize(size), np.uint16) // 255).astype(np.uint8)
        )
    return _filled(colour, mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 5) * unit)))


def _ruler(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Millimetre marks along one side, long ones with numbers, on the bare picture or on a pale strip."""
    width, height = size
    unit = min(size) / 600
    layer = Image.new("RGBA", (width, width), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    dark = rng.random() < 0.75
    colour = (*_shade(rng, ((20, 20, 24),) if dark else ((238, 238, 236),), 12), int(rng.uniform(170, 255)))
    band, pitch = rng.uniform(50, 110) * unit, rng.uniform(14, 60) * unit
    inset = rng.uniform(0, 40) * unit
    if rng.random() < 0.4:
        pen.rectangle(
            (0, 0, width, inset + band * 1.3), fill=(*_shade(rng, ((225, 225, 220),), 20), int(rng.uniform(60, 220)))
        )
    for number in range(int(width / pitch) + 1):
        x, long = number * pitch, number % 10 == 0
        length = band * (1.0 if long else 0.75 if number % 5 == 0 else 0.45)
        pen.line((x, inset, x, inset + length), fill=colour, width=max(1, round(rng.uniform(2.5, 5) * unit)))
        if long and rng.random() < 0.8:
            pen.text((x + 6 * unit, inset + band * 0.8), str(number // 10), fill=colour, font_size=max(8, 34 * unit))
    if rng.random() < 0.7:
        pen.line((0, inset, width, inset), fill=colour, width=max(1, round(3 * unit)))
    layer = layer.rotate(90 * rng.integers(4) + rng.normal(0, 4), Image.Resampling.BILINEAR)
    return layer.resize(size) if width != height else layer


def _patch(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """A coloured sticker or a plaster that reaches into the picture from one side."""
    colour = _shade(rng, _PATCH, 18)
    width, height = size
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    full = int(rng.uniform(215, 256)) if rng.random() < 0.9 else int(rng.uniform(120, 215))
    reach = rng.uniform(0.08, 0.34) * min(size)
    r = rng.uniform(0.18, 0.6) * min(size)
    turn = rng.uniform(0, 2 * np.pi)
    edge = 0.5 * np.array(size) / max(abs(np.cos(turn)), abs(np.sin(turn)))
    middle = np.array(size) / 2 + np.array((np.cos(turn), np.sin(turn))) * (edge + r - reach)
    box = (middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r)
    if rng.random() < 0.65:
        pen.ellipse(box, fill=full)
    else:
        pen.rounded_rectangle(box, radius=r * rng.uniform(0.05, 0.5), fill=full)
        mask = mask.rotate(rng.uniform(-20, 20), center=(width / 2, height / 2))
    layer = _filled(colour, mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4) * min(size) / 600)))
    if rng.random() < 0.5:  # a weave, or the shine of plastic
        shade = Image.fromarray(rng.integers(0, 60, (8, 8), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        alpha = layer.getchannel("A")
        layer = Image.composite(Image.new("RGBA", size, (255, 255, 255, 255)), layer, shade)
        layer.putalpha(alpha)
    return layer


def _corners(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """The round view of a contact dermatoscope: black beyond a circle, soft or sharp."""
    mask = Image.new("L", size, int(rng.uniform(225, 256)))
    x, y = np.array(size) / 2 + rng.normal(0, 0.03, 2) * np.array(size)
    r = rng.uniform(0.37, 0.48) * float(np.hypot(*size))  # the corners are half a diagonal away
    ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), fill=0)
    shade = int(rng.uniform(0, 30))
    return _filled((shade, shade, shade), mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 25) * min(size) / 600)))


def _bubbles(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Bubbles in the contact gel: pale rims with a bright spot."""
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    unit = min(size) / 600
    for _ in range(rng.integers(2, 18)):
        x, y = rng.uniform((0, 0), size)
        r = (rng.gamma(2.0, 12.0) + 6) * unit
        thick = max(1, round(2.5 * unit))
        pen.ellipse((x - r, y - r, x + r, y + r), outline=int(rng.uniform(50, 130)), width=thick)
        pen.arc((x - r, y - r, x + r, y + r), 190, 290, fill=220, width=thick + 1)
        h = max(1.0, r * 0.15)
        pen.ellipse((x - r / 2 - h, y - r / 2 - h, x - r / 2 + h, y - r / 2 + h), fill=240)
    return _filled((246, 246, 244), mask.filter(ImageFilter.GaussianBlur(1.5 * unit)))


KINDS: Final[dict[str, Callable[[tuple[int, int], np.random.Generator], Layer]]] = {
    "hair": _hair,
    "ink": _ink,
    "ruler": _ruler,
    "patch": _patch,
    "corners": _corners,
    "bubbles": _bubbles,
}


def _filled(colour: tuple[int, int, int], mask: Image.Image) -> Layer:
    layer = Image.new("RGBA", mask.size, colour)
    layer.putalpha(mask)
    return layer


def _shade(rng: np.random.Generator, colours: tuple[tuple[int, int, int], ...], spread: float) -> tuple[int, int, int]:
    """One of `colours`, each channel moved by about `spread` levels."""
    red, green, blue = np.clip(rng.choice(colours) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _near_edge(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
    """A point outside the middle of the picture, where people put marks: next to the lesion, not on it."""
    turn, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    return size[0] / 2 * (1 + out * np.cos(turn)), size[1] / 2 * (1 + out * np.sin(turn))


def _curve(points: NDArray[np.float64], steps: int = 16) -> list[tuple[float, float]]:
    """The cubic Bézier curve of four control points [4, 2] as a polyline."""
    t = np.linspace(0, 1, steps)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3))
    return [(float(x), float(y)) for x, y in weights @ points]
