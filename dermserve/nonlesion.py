"""Drawn images that are no dermoscopy photograph: what abstention is measured on where no such photograph may be shown.

Every picture comes from its kind and a seed. Half of the kinds a person would call far from skin (paper, screens,
noise); the others are near it on purpose: smooth, round, pink or brown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dermserve import sample

Pixels = NDArray[np.uint8]
Field = NDArray[np.float64]

_SIZE: Final = (600, 450)
_TEXT: Final = "the patient was seen on and a small mole of arm left for review no change since last visit 2026"
_WORDS: Final = tuple(_TEXT.split())
_SKIN: Final = ((226, 188, 168), (205, 150, 130), (236, 200, 190), (170, 120, 95))


def draw(kind: str, seed: int) -> Pixels:
    """The picture of `kind` (a key of `KINDS`) that belongs to `seed` (≥ 0): uint8 [H, W, 3], sRGB."""
    rng = np.random.default_rng([seed, *kind.encode()])
    return np.asarray(KINDS[kind](rng).convert("RGB"))


def _blank(rng: np.random.Generator) -> Image.Image:
    """One colour: paper, black, a lens cap, bare skin without structure."""
    colour = [(255, 255, 255), (0, 0, 0), _grey(rng), _any(rng), _skin(rng)][rng.integers(5)]
    return Image.new("RGB", _SIZE, colour)


def _noise(rng: np.random.Generator) -> Image.Image:
    """White noise in colour or grey, coarse or fine, or sparse dots."""
    width, height = (side // int(rng.integers(1, 5)) for side in _SIZE)
    form = rng.integers(4)
    if form == 0:
        pixels = rng.integers(0, 256, (height, width, 3))
    elif form == 1:
        pixels = np.repeat(rng.integers(0, 256, (height, width, 1)), 3, axis=2)
    elif form == 2:
        pixels = np.array(_any(rng)) + rng.normal(0, rng.uniform(20, 80), (height, width, 3))
    else:
        pixels = np.where(rng.random((height, width, 1)) < rng.uniform(0.02, 0.3), 255, 0).repeat(3, axis=2)
    return _image(pixels).resize(_SIZE, Image.Resampling.BILINEAR)


def _clouds(rng: np.random.Generator) -> Image.Image:
    """Noise at all scales, as plasma, marble or clouds have it."""
    layers = [_smooth(rng, _SIZE, cell) * cell for cell in (150, 70, 30, 12, 5)]
    field = sum(layers, np.zeros((_SIZE[1], _SIZE[0])))
    field = (field - field.min()) / np.ptp(field)
    return _image(_blend(_any(rng), _any(rng), field))


def _gradient(rng: np.random.Generator) -> Image.Image:
    y, x = _grid()
    turn = rng.uniform(0, 2 * np.pi)
    field = x * np.cos(turn) + y * np.sin(turn) if rng.random() < 0.5 else np.hypot(x, y)
    return _image(_blend(_any(rng), _any(rng), (field - field.min()) / np.ptp(field)))


def _text(rng: np.random.Generator) -> Image.Image:
    """A page of text, straight as a scan or turned and shaded as a photograph of one."""
    paper = [(255, 255, 255), (244, 238, 224), _grey(rng, 190)][rng.integers(3)]
    page = Image.new("RGB", (900, 700), paper)
    pen = ImageDraw.Draw(page)
    size = int(rng.integers(11, 34))
    for top in range(int(rng.integers(10, 60)), 690, int(size * rng.uniform(1.3, 2))):
        if rng.random() < 0.9:
            line = " ".join(rng.choice(_WORDS, int(rng.integers(3, 1200 // size // 3))))
            pen.text((40, top), line, fill=_grey(rng, 0, 90), font_size=size)
    if rng.random() < 0.5:
        return page.crop((60, 60, 660, 510))
    turned = page.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, fillcolor=paper).crop((120, 90, 720, 540))
    return _lit(rng, turned)


def _screen(rng: np.random.Generator) -> Image.Image:
    """Windows, buttons and lists in flat colours."""
    shot = Image.new("RGB", _SIZE, _any(rng))
    pen = ImageDraw.Draw(shot)
    for _ in range(rng.integers(4, 20)):
        x, y, w, h = rng.uniform((0, 0, 30, 12), (500, 400, 400, 250))
        pen.rounded_rectangle((x, y, x + w, y + h), radius=rng.integers(0, 12), fill=_any(rng), outline=_any(rng))
        for row in range(int(h // 24)):
            pen.text((x + 8, y + 6 + 22 * row), str(rng.choice(_WORDS)), fill=_grey(rng), font_size=13)
    return shot


def _chart(rng: np.random.Generator) -> Image.Image:
    """Axes, a grid, and bars or curves."""
    sheet = Image.new("RGB", _SIZE, (255, 255, 255) if rng.random() < 0.8 else (30, 30, 40))
    pen = ImageDraw.Draw(sheet)
    for k in range(9):
        pen.line((50, 40 + 45 * k, 580, 40 + 45 * k), fill=(205, 205, 210))
        pen.text((8, 34 + 45 * k), str(100 - 10 * k), fill=(120, 120, 120), font_size=13)
    for _ in range(rng.integers(1, 5)):
        heights, colour = 400 - rng.uniform(10, 350, 12), _any(rng)
        if rng.random() < 0.5:
            pen.line([(60 + 45 * k, float(h)) for k, h in enumerate(heights)], fill=colour, width=3)
        else:
            for k, h in enumerate(heights):
                pen.rectangle((60 + 45 * k, float(h), 85 + 45 * k, 400), fill=colour)
    return sheet


def _pattern(rng: np.random.Generator) -> Image.Image:
    """Checkerboard, stripes or a bar code."""
    y, x = np.mgrid[: _SIZE[1], : _SIZE[0]]
    cell, form = int(rng.integers(3, 70)), rng.integers(3)
    if form == 0:
        field = (x // cell + y // cell) % 2
    elif form == 1:
        turn = rng.uniform(0, np.pi)
        field = ((x * np.cos(turn) + y * np.sin(turn)) // cell % 2).astype(int)
    else:
        field = np.repeat(rng.integers(0, 2, _SIZE[0] // 4), 4)[None].repeat(_SIZE[1], axis=0)
    ends = ((255, 255, 255), (0, 0, 0)) if rng.random() < 0.5 else (_any(rng), _any(rng))
    return _image(_blend(*ends, field))


def _object(rng: np.random.Generator) -> Image.Image:
    """Things with light and shadow on a table: balls, boxes and cups, in front of a wall."""
    table, wall = _any(rng), _any(rng)
    y, x = np.mgrid[: _SIZE[1], : _SIZE[0]]
    horizon = rng.uniform(80, 260)
    grain = np.sin(y * 0.2 + 4 * _smooth(rng, _SIZE, 60)) * 8 + 6 * _smooth(rng, _SIZE, 6)
    pixels = np.where((y > horizon)[..., None], np.array(table) + grain[..., None], np.array(wall) + 0.0)
    scene = _image(pixels)
    for _ in range(rng.integers(1, 5)):
        cx, cy, r = rng.uniform((100, horizon, 40), (500, 400, 130))
        shadow = Image.new("L", _SIZE)
        ImageDraw.Draw(shadow).ellipse((cx - r, cy + 0.6 * r, cx + 1.6 * r, cy + 1.2 * r), fill=150)
        scene.paste((10, 10, 10), mask=shadow.filter(ImageFilter.GaussianBlur(12)))
        body = Image.new("L", _SIZE)
        pen = ImageDraw.Draw(body)
        form = rng.integers(3)
        if form == 0:
            pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        elif form == 1:
            pen.polygon(
                [(cx - r, cy - r * 0.7), (cx + r * 0.8, cy - r), (cx + r, cy + r * 0.8), (cx - r * 0.9, cy + r)], 255
            )
        else:
            pen.rounded_rectangle((cx - 0.6 * r, cy - r, cx + 0.6 * r, cy + r), radius=r / 5, fill=255)
            pen.arc((cx + 0.3 * r, cy - 0.5 * r, cx + 1.1 * r, cy + 0.5 * r), -90, 90, fill=255, width=int(r / 6))
        light = np.clip(1.15 - np.hypot(x - cx + 0.4 * r, y - cy + 0.5 * r) / (1.8 * r), 0.15, 1.1)
        gloss = 255 * np.exp(-((np.hypot(x - cx + 0.45 * r, y - cy + 0.5 * r) / (0.15 * r)) ** 2))
        scene.paste(_image(np.array(_any(rng)) * light[..., None] + gloss[..., None]), mask=body)
    return _photographed(rng, scene)


def _landscape(rng: np.random.Generator) -> Image.Image:
    """Sky, hills and a sun or moon."""
    y, x = np.mgrid[: _SIZE[1], : _SIZE[0]]
    pixels = _blend(_any(rng), (235, 240, 250), y / _SIZE[1]) + 25 * _smooth(rng, _SIZE, 80)[..., None]
    for depth in range(3):
        ridge = 180 + 90 * depth + 60 * _smooth(rng, _SIZE, 120)[depth]
        shade = np.array(_any(rng)) * (0.9 - 0.2 * depth) + 22 * _smooth(rng, _SIZE, 5)[..., None]
        pixels = np.where((y > ridge[None])[..., None], shade, pixels)
    sun = np.hypot(x - rng.uniform(50, 550), y - rng.uniform(30, 120)) < rng.uniform(15, 40)
    return _photographed(rng, _image(np.where(sun[..., None], 250, pixels)))


def _face(rng: np.random.Generator) -> Image.Image:
    """A head before a wall: skin, but not through a dermatoscope."""
    skin, scene = _skin(rng), Image.new("RGB", _SIZE, _any(rng))
    pen = ImageDraw.Draw(scene)
    pen.ellipse((120, 300, 480, 700), fill=_any(rng))
    pen.ellipse((195, 40, 405, 250), fill=_grey(rng, 10, 120))
    pen.ellipse((205, 70, 395, 345), fill=skin)
    for eye in (260, 340):
        pen.ellipse((eye - 20, 170, eye + 20, 192), fill=(245, 245, 245))
        pen.ellipse((eye - 9, 172, eye + 9, 190), fill=_any(rng))
        pen.line((eye - 24, 155, eye + 24, 153), fill=(60, 40, 30), width=6)
    pen.line((300, 190, 290, 245, 308, 248), fill=tuple(c - 40 for c in skin), width=4)
    pen.ellipse((265, 275, 335, 298), fill=(180, 80, 85))
    return _photographed(rng, _lit(rng, scene.crop((100, 20, 500, 420)).resize(_SIZE)))


def _radiograph(rng: np.random.Generator) -> Image.Image:
    """Grey bones and soft tissue."""
    y, x = _grid()
    field = 60 * np.exp(-((x / rng.uniform(0.5, 0.9)) ** 2 + (y / 1.2) ** 2)) + 25 * _smooth(rng, _SIZE, 60)
    for _ in range(rng.integers(3, 9)):
        bow = y - rng.uniform(-1, 1) - rng.uniform(-0.4, 0.4) * x**2
        field += rng.uniform(30, 90) * np.exp(-((bow / rng.uniform(0.03, 0.12)) ** 2))
    return _image(np.repeat((field + rng.normal(0, 4, field.shape))[..., None], 3, axis=2))


def _histology(rng: np.random.Generator) -> Image.Image:
    """Stained tissue: pink ground, many violet nuclei."""
    ground = np.array((232, 170, 200)) + 30 * _smooth(rng, _SIZE, 25)[..., None]
    slide = _image(ground)
    pen = ImageDraw.Draw(slide)
    for _ in range(rng.integers(200, 900)):
        px, py = rng.uniform((0, 0), _SIZE)
        a, b = rng.uniform(3, 9, 2)
        pen.ellipse((px - a, py - b, px + a, py + b), fill=(int(rng.uniform(80, 130)), 50, int(rng.uniform(120, 170))))
    return slide.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))


def _blur(rng: np.random.Generator) -> Image.Image:
    """A drawn lesion so far out of focus that nothing is left to see."""
    return _lesion(rng).filter(ImageFilter.GaussianBlur(rng.uniform(30, 90)))


def _overexposed(rng: np.random.Generator) -> Image.Image:
    return _image(np.asarray(_lesion(rng)) * rng.uniform(0.1, 0.4) + rng.uniform(215, 255))


def _underexposed(rng: np.random.Generator) -> Image.Image:
    return _image(np.asarray(_lesion(rng)) * rng.uniform(0.01, 0.08) + rng.normal(2, 2, (_SIZE[1], _SIZE[0], 3)))


KINDS: Final[dict[str, Callable[[np.random.Generator], Image.Image]]] = {
    "blank": _blank,
    "noise": _noise,
    "clouds": _clouds,
    "gradient": _gradient,
    "text": _text,
    "screen": _screen,
    "chart": _chart,
    "pattern": _pattern,
    "object": _object,
    "landscape": _landscape,
    "face": _face,
    "radiograph": _radiograph,
    "histology": _histology,
    "blur": _blur,
    "overexposed": _overexposed,
    "underexposed": _underexposed,
}


def _lesion(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(sample.draw(int(rng.integers(2**31))))


def _any(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _grey(rng: np.random.Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    level = int(rng.integers(low, high))
    return level, level, level


def _skin(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(rng.choice(_SKIN) + rng.normal(0, 8, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _grid() -> tuple[Field, Field]:
    """Rows and columns of a picture, each −1…1."""
    y, x = np.mgrid[-1 : 1 : _SIZE[1] * 1j, -1 : 1 : _SIZE[0] * 1j]
    return y, x


def _smooth(rng: np.random.Generator, size: tuple[int, int], cell: int) -> Field:
    """Noise without structure below `cell` pixels: float [H, W], about −1…1."""
    coarse = rng.normal(0, 0.5, (size[1] // cell + 3, size[0] // cell + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float64)


def _blend(one: tuple[int, int, int], other: tuple[int, int, int], field: NDArray[np.generic]) -> Field:
    share: Field = np.asarray(field, np.float64)[..., None]
    blended: Field = np.array(one) * (1 - share) + np.array(other) * share
    return blended


def _lit(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Unevenly, as a room's light does."""
    light = 0.85 + 0.25 * _smooth(rng, picture.size, 250)
    return _image(np.asarray(picture) * light[..., None])


def _photographed(rng: np.random.Generator, scene: Image.Image) -> Image.Image:
    """With a lens and a sensor: a little blur, a little noise."""
    soft = np.asarray(scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2))), np.float64)
    return _image(soft + rng.normal(0, rng.uniform(1, 5), soft.shape))


def _image(pixels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
