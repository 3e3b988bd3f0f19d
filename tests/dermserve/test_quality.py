"""Flags are raised by what they are named after, and rarely without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dermserve import image, quality, sample
from dermserve.labels import QUALITY_FLAGS
from training.artifacts import draw

REAL = Path(__file__).resolve().parents[3] / "shared/data/isic2017-test/images"


@pytest.fixture(scope="module")
def lesions() -> list[np.ndarray]:
    """Twelve drawn lesions; those with a hair of their own are left out."""
    prepared = [image.prepare(sample.jpeg(seed)).pixels for seed in range(24)]
    return [one for one in prepared if not flags(one) & {"hairy", "color_tint"}][:12]


def flags(pixels: np.ndarray) -> set[str]:
    scores = quality.measure(pixels)
    assert scores.dtype == np.float32
    assert scores.shape == (4,)
    assert ((scores >= 0) & (scores <= 1)).all()
    return {flag for flag, score in zip(QUALITY_FLAGS, scores, strict=True) if score >= quality.THRESHOLDS[flag]}


def share(flag: str, some: list[np.ndarray]) -> float:
    return float(np.mean([flag in flags(one) for one in some]))


def test_most_drawn_lesions_raise_no_flag(lesions: list[np.ndarray]) -> None:
    assert len(lesions) == 12
    assert [flags(one) for one in lesions].count(set()) >= 10


@pytest.mark.parametrize("radius", [4, 8, 20])
def test_blur_is_flagged(lesions: list[np.ndarray], radius: float) -> None:
    blurred = [np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(radius))) for one in lesions]
    assert share("blurry", blurred) >= 0.9


def test_a_small_picture_enlarged_is_not_blurry(lesions: list[np.ndarray]) -> None:
    """The public copies have 200×150 pixels."""
    small = [np.asarray(Image.fromarray(one).resize((200, 150)).resize((300, 300))) for one in lesions]
    assert share("blurry", small) <= 0.1


def test_drawn_hair_and_ink_are_flagged(lesions: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    assert share("hairy", [draw("hair", one, rng) for one in lesions for _ in range(3)]) >= 0.6
    inked = [draw("ink", one, rng) for one in lesions for _ in range(3)]
    # Two of its seven colours are black and magenta, and a dot may be small or on the lesion.
    assert share("marker_pen", inked) >= 0.4


@pytest.mark.parametrize("colour", [(90, 50, 150), (30, 60, 160), (40, 120, 60)])
def test_a_stroke_of_violet_blue_or_green_ink_is_flagged(lesions: list[np.ndarray], colour: tuple[int, ...]) -> None:
    marked = [one.copy() for one in lesions]
    for one in marked:
        one[20:32, 30:130] = colour
    assert share("marker_pen", marked) >= 0.9


def test_a_blue_lesion_is_no_ink(lesions: list[np.ndarray]) -> None:
    blue = [one.copy() for one in lesions]
    y, x = np.mgrid[-1:1:300j, -1:1:300j]
    for one in blue:
        one[x**2 + y**2 < 0.1] = (70, 85, 130)
    assert share("marker_pen", blue) <= 0.1


@pytest.mark.parametrize("gain", [(1.1, 1.0, 0.45), (0.5, 0.8, 1.6), (0.6, 1.2, 0.7)])
def test_a_colour_cast_is_flagged(lesions: list[np.ndarray], gain: tuple[float, ...]) -> None:
    cast = [np.clip(one * np.array(gain), 0, 255).astype(np.uint8) for one in lesions]
    assert share("color_tint", cast) >= 0.9


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_image_has_scores(level: int) -> None:
    assert "blurry" in flags(np.full((300, 300, 3), level, np.uint8))


@pytest.mark.parametrize("size", [1, 2, 999, 1000])
def test_the_median_by_counting_is_the_median(size: int) -> None:
    levels = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert quality._median(levels) == np.median(levels)


def test_a_halved_plane_is_pillows() -> None:
    plane = np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)
    assert np.array_equal((quality._halved(plane) + 2) >> 2, np.asarray(Image.fromarray(plane).reduce(2)))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/isic2017-test")
def test_few_real_images_are_flagged() -> None:
    files = sorted(REAL.glob("*.jpg"))[::8]
    real = [image.prepare(file.read_bytes()).pixels for file in files]
    for flag, most in {"blurry": 0.05, "hairy": 0.25, "marker_pen": 0.15, "color_tint": 0.05}.items():
        assert share(flag, real) <= most, flag
