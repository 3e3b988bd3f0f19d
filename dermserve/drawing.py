"""Layers of a drawn lesion image: each function draws one thing that a dermatoscope shows, from a random generator.

Fields are optical: amounts of melanin and blood in the skin, shares of haze and light. `dermserve.sample` turns them
into a picture and decides what lies on top.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HEIGHT: Final = 450
WIDTH: Final = 600

Field = NDArray[np.float32]
"""One value per pixel, float32 [450, 600]."""

Picture = NDArray[np.float32]
"""Red, green and blue, 0…1, sRGB: float32 [450, 600, 3]."""

# Optical depth in red, green and blue of one unit of each absorber: melanin grows towards blue, haemoglobin peaks in
# green. Chosen by eye, in display values, so that thin pigment is tan, thick pigment nearly black and vessels red.
MELANIN: Final = (0.58, 1.0, 1.38)
BLOOD: Final = (0.13, 0.92, 0.74)
VEIL: Final = (0.47, 0.51, 0.60)
_DARK_HAIR: Final = (0.16, 0.11, 0.09)
_FAIR_HAIR: Final = (0.55, 0.40, 0.27)
_VELLUS_HAIR: Final = (0.93, 0.80, 0.74)
_GLARE: Final = (0.97, 0.97, 0.97)
_INK: Final = (0.02, 0.02, 0.03)

# Melanin of the surrounding skin for Fitzpatrick types I to VI; pale skin is far more common in dermoscopy archives.
_SKIN_TYPES: Final = (0.03, 0.08, 0.18, 0.36, 0.65, 1.0)
_SKIN_SHARES: Final = (0.2, 0.27, 0.22, 0.13, 0.1, 0.08)

_DIRECTIONS: Final = 2048
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


def _noise(rng: np.random.Generator, cell: float, octaves: int = 1) -> Field:
    """Smooth noise of about unit variance with features of `cell` pixels; each octave halves size and weight."""
    # The octaves are summed on a coarse grid, fine enough for the smallest; only the sum is brought to full size.
    spacing = max(1.0, cell / 2 ** (octaves - 1) / 3)
    shape = (int(WIDTH / spacing), int(HEIGHT / spacing))
    total = np.zeros(shape[::-1], np.float32)
    for octave in range(octaves):
        size = cell / 2**octave
        grid = rng.standard_normal((int(HEIGHT / size) + 2, int(WIDTH / size) + 2), np.float32)
        smooth = Image.fromarray(grid).resize(shape, Image.Resampling.BICUBIC)
        total += np.asarray(smooth) * np.float32(1.4 * 0.5**octave)
    return _full_size(total)


def _full_size(field: Field) -> Field:
    return np.asarray(Image.fromarray(field).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def step(field: Field, width: float) -> Field:
    """0 below, 1 above zero, with a smooth edge about `width` wide."""
    t = np.clip(field / (2 * width) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def outline(rng: np.random.Generator) -> tuple[Field, Field]:
    """Depth below the lesion's border in radii (1 at the centre, 0 at the border, negative outside), and the angle.

    The border is a periodic low-frequency series over the angle, then shaken by two-dimensional noise, which alone
    gives the notches and islands that no function of the angle has.
    """
    radius = rng.uniform(55, 165) if rng.random() < 0.85 else rng.uniform(165, 230)
    x = _X - np.float32(WIDTH / 2 + rng.normal(0, 28))
    y = _Y - np.float32(HEIGHT / 2 + rng.normal(0, 20))
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.45)
    u = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32) / np.float32(stretch)
    v = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32) * np.float32(stretch**0.5)
    angle = np.arctan2(v, u)
    irregularity = rng.uniform(0.03, 0.14)
    turns = np.linspace(-np.pi, np.pi, _DIRECTIONS)
    border = np.ones(_DIRECTIONS)
    for wave in range(2, 8):
        swing, phase = irregularity * rng.normal() / wave**0.9, rng.uniform(0, 2 * np.pi)
        border += swing * np.cos(wave * turns + phase)
    depth = 1.0 - np.sqrt(u * u + v * v) / _around(radius * np.clip(border, 0.45, 1.8), angle)
    depth += np.float32(rng.uniform(0.02, 0.06)) * _noise(rng, radius * 0.32, 4)
    return depth, angle


def _around(values: NDArray[np.floating[Any]], angle: Field) -> Field:
    """Look up a function of the direction, given at `_DIRECTIONS` angles from -π to π, for every pixel's angle."""
    index = (angle + np.float32(np.pi)) * np.float32((_DIRECTIONS - 1) / (2 * np.pi))
    found: Field = values.astype(np.float32)[index.astype(np.int32)]
    return found


def skin(rng: np.random.Generator) -> tuple[Field, Field]:
    """Melanin and blood of the skin around the lesion, with mottling, fine furrows and a few freckles."""
    base = rng.choice(_SKIN_TYPES, p=_SKIN_SHARES) * rng.uniform(0.8, 1.2)
    mottling, grain = _noise(rng, 70, 3), _noise(rng, 5, 2)
    # Skin furrows: ridges of noise stretched along one direction by the image's own aspect are enough at this scale.
    furrows = np.abs(_noise(rng, rng.uniform(9, 14)))
    melanin = np.float32(base) * (1.0 + 0.10 * mottling + 0.03 * grain) + 0.008 * grain - 0.014 * furrows
    flush = rng.choice((rng.uniform(0.04, 0.15), rng.uniform(0.3, 0.55)), p=(0.3, 0.7)) + 0.15 * base
    blood = np.float32(flush) * (1.0 + 0.12 * _noise(rng, 90, 3) - 0.03 * furrows)
    if rng.random() < 0.3:
        threshold = rng.uniform(1.9, 2.6)
        melanin += np.float32(rng.uniform(0.12, 0.35)) * step(_noise(rng, rng.uniform(30, 60), 3) - threshold, 0.9)
    return melanin, blood


def pigment(rng: np.random.Generator, depth: Field, angle: Field, inside: Field) -> Field:
    """Melanin of the lesion: variegated body, blotch, and one or two of network, globules and streaks."""
    amount = rng.uniform(0.35, 1.25)
    body = 1.0 + rng.uniform(0.12, 0.4) * _noise(rng, rng.uniform(35, 90), 4) + 0.06 * _noise(rng, 5, 2)
    body *= 1.0 + np.float32(rng.uniform(-0.45, 0.6)) * np.clip(depth, 0, 1)
    if rng.random() < 0.5:
        blotch = step(_noise(rng, rng.uniform(60, 120), 3) - np.float32(rng.uniform(0.3, 1.3)), 0.9)
        body += np.float32(rng.uniform(0.4, 1.3)) * blotch * step(depth - 0.15, 0.2)
    if rng.random() < 0.2:  # regression: pigment gone from an area
        body *= 1.0 - np.float32(rng.uniform(0.4, 0.8)) * step(_noise(rng, 80, 2) - 0.4, 0.5)
    texture = rng.choice(3, p=(0.5, 0.3, 0.2))
    if texture == 0:
        body += np.float32(rng.uniform(0.12, 0.4)) * _network(rng) * step(0.75 - depth, 0.35)
    elif texture == 1:
        body += np.float32(rng.uniform(0.3, 0.7)) * _globules(rng, depth)
    if texture == 2 or rng.random() < 0.2:
        inside = np.maximum(inside, _streaks(rng, depth, angle))
    return np.float32(amount) * np.clip(body, 0.08, None) * inside


def _network(rng: np.random.Generator) -> Field:
    """Honeycomb of dark lines, about -1…1: three plane waves 120° apart, bent by noise so that no mesh repeats."""
    pitch, turn = rng.uniform(6.5, 10.5), rng.uniform(0, np.pi)
    x = _X + 2.2 * _noise(rng, 22, 2)
    y = _Y + 2.2 * _noise(rng, 22, 2)
    mesh: Field = np.zeros_like(x)
    for third in range(3):
        a = turn + third * 2 * np.pi / 3
        wave = 2 * np.pi / pitch * np.array((np.cos(a), np.sin(a)), np.float32)
        mesh -= np.cos(wave[0] * x + wave[1] * y)
    strength: Field = np.clip(0.55 + 0.5 * _noise(rng, 45, 2), 0, 1.3)
    return strength * np.clip(mesh / 1.8, -1.0, 0.8)


def _globules(rng: np.random.Generator, depth: Field) -> Field:
    """Round clods of 3 to 9 pixels, 0…1, scattered where the lesion is."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(canvas)
    rows, columns = np.nonzero(depth[::4, ::4] > rng.choice((0.0, 0.1)))
    if rows.size:
        for pick in rng.integers(0, rows.size, rng.integers(40, 220)):
            x, y = columns[pick] * 4 + rng.uniform(0, 4), rows[pick] * 4 + rng.uniform(0, 4)
            a, b = rng.uniform(2.0, 5.5, 2)
            pen.ellipse((x - a, y - b, x + a, y + b), fill=int(rng.uniform(90, 255)))
    return _as_field(canvas.filter(ImageFilter.GaussianBlur(1.6)))


def _streaks(rng: np.random.Generator, depth: Field, angle: Field) -> Field:
    """Radial fingers across the border, 0…1: the border moves out by a high-frequency function of the angle alone."""
    count = int(rng.integers(36, 72))
    lengths = Image.fromarray(rng.uniform(-1, 1, (1, 2 * count)).astype(np.float32))
    reach = _around(np.asarray(lengths.resize((_DIRECTIONS, 1), Image.Resampling.BICUBIC))[0], angle)
    where = np.clip(0.4 + np.cos(angle - np.float32(rng.uniform(-np.pi, np.pi))), 0, 1)
    fingers = step(depth + np.float32(rng.uniform(0.1, 0.24)) * np.clip(reach, 0, 1) * where, 0.13)
    return np.float32(0.75) * fingers


def vascularity(rng: np.random.Generator, inside: Field) -> Field:
    """Additional blood: an inflamed halo, redness within, and in some lesions wavy vessels."""
    field = np.float32(rng.uniform(0.0, 0.5)) * inside * (1.0 + 0.3 * _noise(rng, 60, 2))
    halo = Image.fromarray(inside).resize((12, 9), Image.Resampling.BOX).resize((60, 45), Image.Resampling.BICUBIC)
    field += np.float32(rng.uniform(0.0, 0.22)) * _full_size(np.asarray(halo))
    if rng.random() < 0.25:
        canvas = Image.new("L", (WIDTH, HEIGHT))
        pen = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(4, 22)):
            start = np.array((WIDTH, HEIGHT)) / 2 + rng.normal(0, 60, 2)
            course = np.cumsum(rng.normal(0, 9, (6, 2)), axis=0) + start
            pen.line(_bezier(course[:4]), fill=int(rng.uniform(110, 230)), width=int(rng.integers(1, 4)))
        field += np.float32(rng.uniform(0.4, 0.9)) * _as_field(canvas.filter(ImageFilter.GaussianBlur(1.1))) * inside
    return field


def veil(rng: np.random.Generator, inside: Field) -> Field:
    """Share of blue-white haze over deep pigment, 0…0.65."""
    if rng.random() > 0.18:
        return np.zeros_like(inside)
    patch = step(_noise(rng, rng.uniform(70, 120), 4) - np.float32(rng.uniform(0.1, 0.9)), 1.6)
    return np.float32(rng.uniform(0.3, 0.65)) * patch * inside**2


def illumination(rng: np.random.Generator) -> tuple[Field, NDArray[np.float32]]:
    """Vignetting, about 0.6…1, and the colour of the lamp with the camera's white balance, float32 [3]."""
    warmth, tint = rng.normal(0, 0.035), rng.normal(0, 0.02)
    lamp = np.array((0.97 + warmth, 0.955 - abs(tint), 0.95 - warmth + tint), np.float32)
    x = (_X[:1] - WIDTH * rng.uniform(0.42, 0.58)) / (WIDTH / 2)
    y = (_Y[:, :1] - HEIGHT * rng.uniform(0.42, 0.58)) / (WIDTH / 2)
    fall = 1.0 - np.float32(rng.uniform(0.0, 0.22)) * (x * x + y * y)
    return fall, lamp * np.float32(rng.uniform(0.88, 1.03))


def _bezier(points: NDArray[np.float64], steps: int = 24) -> list[tuple[float, float]]:
    """The cubic Bézier curve of four control points [4, 2] as a polyline."""
    t = np.linspace(0, 1, steps)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3))
    return [(float(x), float(y)) for x, y in weights @ points]


def lay_hairs(rng: np.random.Generator, image: Picture) -> None:
    """None, a few or many hairs, dark or fair; every skin also has some thin pale vellus hairs."""
    coarse = int(rng.choice((0, rng.integers(1, 7), rng.integers(10, 32)), p=(0.55, 0.3, 0.15)))
    fine = int(rng.integers(2, 22))
    grain = rng.uniform(0, np.pi)
    shade = _DARK_HAIR if rng.random() < 0.7 else _FAIR_HAIR
    for number, colour, opacity, length, width in (
        (fine, _VELLUS_HAIR, rng.uniform(0.15, 0.4), (20, 90), 1),
        (coarse, shade, rng.uniform(0.55, 0.9), (180, 560), int(rng.integers(3, 6))),
    ):
        if not number:
            continue
        canvas = Image.new("L", (2 * WIDTH, 2 * HEIGHT))  # drawn at twice the size: Pillow's lines have no smooth edge
        pen = ImageDraw.Draw(canvas)
        for _ in range(number):
            middle = rng.uniform((0, 0), (2 * WIDTH, 2 * HEIGHT))
            a, half = grain + rng.normal(0, 0.45), rng.uniform(*length)
            along = np.array((np.cos(a), np.sin(a))) * half
            bend = np.array((-np.sin(a), np.cos(a))) * half * rng.normal(0, 0.22, (4, 1))
            course = middle + np.linspace(-1, 1, 4)[:, None] * along + bend
            pen.line(_bezier(course), fill=int(rng.uniform(140, 255)), width=width, joint="curve")
        _blend(image, canvas.reduce(2), colour, opacity)


def lay_bubbles(rng: np.random.Generator, image: Picture) -> None:
    """Bubbles in the contact gel: a bright rim, brighter on the lamp's side, and a small highlight."""
    canvas = Image.new("L", (2 * WIDTH, 2 * HEIGHT))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 14)):
        x, y = rng.uniform((0, 0), (2 * WIDTH, 2 * HEIGHT))
        r = rng.gamma(2.0, 9.0) + 6
        box = (x - r, y - r, x + r, y + r)
        pen.ellipse(box, outline=70, width=2)
        pen.arc(box, 190, 290, fill=190, width=3)
        h = max(2.0, r * 0.14)
        pen.ellipse((x - r * 0.45 - h, y - r * 0.45 - h, x - r * 0.45 + h, y - r * 0.45 + h), fill=235)
    _blend(image, canvas.reduce(2).filter(ImageFilter.GaussianBlur(0.8)), _GLARE, 0.75)


def lay_ruler(rng: np.random.Generator, image: Picture) -> None:
    """Millimetre ticks of a scale along one edge of the contact plate."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(canvas)
    pitch, across = rng.uniform(26, 42), bool(rng.random() < 0.6)
    edge, tilt = rng.uniform(6, 24), rng.normal(0, 0.015)
    far = bool(rng.random() < 0.5)
    span = WIDTH if across else HEIGHT
    for tick in range(int(span / pitch) + 2):
        at = tick * pitch
        near = edge + at * tilt
        end = near + (26 if tick % 5 == 0 else 14)
        if far:
            near, end = (HEIGHT if across else WIDTH) - near, (HEIGHT if across else WIDTH) - end
        pen.line((at, near, at, end) if across else (near, at, end, at), fill=230, width=2)
    _blend(image, canvas.filter(ImageFilter.GaussianBlur(0.9)), _INK, rng.uniform(0.6, 0.85))


def round_view(rng: np.random.Generator) -> Field:
    """Light through the round opening, 0…1: dark corners, in some images a dark frame all around."""
    radius = rng.uniform(300, 350) if rng.random() < 0.6 else rng.uniform(215, 250)
    x, y = _X - np.float32(WIDTH / 2 + rng.normal(0, 8)), _Y - np.float32(HEIGHT / 2 + rng.normal(0, 8))
    return np.clip(0.02 + step(np.float32(radius) - np.hypot(x, y), rng.uniform(3, 14)), 0, 1)


def focus(rng: np.random.Generator, image: Picture) -> Picture:
    """The slight blur of the optics; one picture in ten is clearly out of focus."""
    radius = rng.uniform(1.6, 2.6) if rng.random() < 0.1 else rng.uniform(0.3, 0.9)
    clipped = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return _as_field(Image.fromarray(clipped).filter(ImageFilter.GaussianBlur(radius)))


def _blend(image: Picture, cover: Image.Image, colour: tuple[float, float, float], opacity: float) -> None:
    """Lay `colour` over `image` in place, as far as the 8-bit `cover` says."""
    mask = np.asarray(cover)
    rows, columns = np.nonzero(mask)
    share = mask[rows, columns].astype(np.float32)[:, None] * np.float32(opacity / 255.0)
    under = image[rows, columns]
    image[rows, columns] = under + share * (np.array(colour, np.float32) - under)


def _as_field(image: Image.Image) -> Field:
    """An 8-bit image as float32, 0…1, of the same shape."""
    return np.asarray(image, np.float32) / np.float32(255.0)
