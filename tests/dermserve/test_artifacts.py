"""Hair is painted over; everything else stays."""

from __future__ import annotations

import numpy as np
import pytest

from dermserve import artifacts, image, sample
from training.artifacts import draw


def plain(seed: int) -> np.ndarray:
    """A lesion without hair: smooth skin, a soft brown spot, some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:300j, -1:1:300j]
    spot = np.exp(-((x / 0.35) ** 2 + (y / 0.3) ** 2) * 2)[..., None]
    pixels = np.array([222, 180, 160]) - spot * np.array([95, 105, 110]) + rng.normal(0, 2, (300, 300, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_hair_is_found_and_gone_after_removal(seed: int) -> None:
    clean = plain(seed)
    hairy = draw("hair", clean, np.random.default_rng(seed))
    touched = np.abs(hairy.astype(int) - clean).max(axis=2) > 40
    assert touched.mean() > 0.01
    found = artifacts.hair(hairy)
    assert found[touched].mean() > 0.6
    assert found[~touched].mean() < 0.25, "soft edges and what lies between crossing hairs"
    restored = artifacts.remove(hairy)
    before, after = (np.abs(some.astype(int) - clean)[touched].mean() for some in (hairy, restored))
    assert after < 0.4 * before


def test_an_image_without_hair_stays_as_it_is_and_the_input_is_not_written_to() -> None:
    clean = plain(9)
    clean.setflags(write=False)
    assert not artifacts.hair(clean).any()
    assert np.array_equal(artifacts.remove(clean), clean)


def test_fair_hair_on_dark_skin_is_found() -> None:
    dark = (plain(3) * 0.45).astype(np.uint8)
    dark[148:151, 30:270] = (190, 170, 140)
    assert artifacts.hair(dark)[149, 60:240].mean() > 0.9


def test_ink_is_left_alone() -> None:
    inked = plain(5)
    inked[40:60, 40:120] = (72, 40, 130)
    assert np.array_equal(artifacts.remove(inked)[42:58, 45:115], inked[42:58, 45:115])


def test_a_picture_full_of_lines_has_an_answer() -> None:
    lines = np.zeros((300, 300, 3), np.uint8)
    lines[::4] = 255
    assert artifacts.remove(lines).shape == (300, 300, 3)


def test_prepare_removes_on_request_and_the_hash_tells() -> None:
    data = sample.jpeg(1)
    usual, removed = image.prepare(data), image.prepare(data, remove_artifacts=True)
    assert np.array_equal(removed.pixels, artifacts.remove(usual.pixels))
    assert not np.array_equal(removed.pixels, usual.pixels)
    assert removed.region == usual.region
    assert image.preprocessing_hash(remove_artifacts=True) != image.preprocessing_hash()


def test_hair_in_a_corner_is_removed_to_its_end() -> None:
    skin = np.full((300, 300, 3), 190, np.uint8)
    crossed = skin.copy()
    for row in range(120):
        crossed[row, max(0, row - 1) : row + 2] = 30
    assert np.array_equal(artifacts.remove(crossed), skin)


@pytest.mark.parametrize("shape", [(300, 300), (61, 90), (17, 40)])
def test_lines_are_openings_over_sixteen_directions(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    mask = rng.random(shape) < 0.2
    for _ in range(12):  # lines across what the function works on in parts
        row, column, turn = rng.integers(shape[0]), rng.integers(shape[1]), rng.uniform(0, np.pi)
        steps = np.arange(-60, 60, 0.2)
        rows, columns = (row + steps * np.sin(turn)).astype(int), (column + steps * np.cos(turn)).astype(int)
        within = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        mask[rows[within], columns[within]] = True
    wide = np.pad(mask, 60)
    expected = np.zeros_like(wide)
    for down, right in artifacts._DIRECTIONS:
        count = round(artifacts._LENGTH / np.hypot(down, right))
        offsets = [(step * down, step * right) for step in range(count)]
        eroded = np.all([np.roll(wide, (-y, -x), (0, 1)) for y, x in offsets], axis=0)
        expected |= np.any([np.roll(eroded, offset, (0, 1)) for offset in offsets], axis=0)
    assert expected.any()
    assert np.array_equal(artifacts._lines(mask), expected[60:-60, 60:-60])


def test_filling_is_a_closing_over_four_directions() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    wide, margin = np.pad(picture, 2 * artifacts._WIDTH, mode="edge"), 2 * artifacts._WIDTH
    closings = []
    for down, right in artifacts._ACROSS:
        offsets = [(step * down, step * right) for step in range(artifacts._WIDTH)]
        dilated = np.max([np.roll(wide, (-y, -x), (0, 1)) for y, x in offsets], axis=0)
        closings.append(np.min([np.roll(dilated, offset, (0, 1)) for offset in offsets], axis=0))
    expected = np.max(closings, axis=0)[margin:-margin, margin:-margin] - picture
    assert np.array_equal(artifacts._filled(picture), expected)
