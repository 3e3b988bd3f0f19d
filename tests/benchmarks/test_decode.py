from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import decode
from dermserve import image, sample
from dermserve.errors import StartupError


def test_an_enlarged_image_has_12_megapixels_and_shows_the_same_picture() -> None:
    small = sample.jpeg(1)
    large = decode.enlarged(small, 0)
    header = image.inspect(large)
    assert header.width * header.height == pytest.approx(12_000_000, rel=0.001)
    assert header.width / header.height == pytest.approx(600 / 450, rel=0.001)
    assert np.abs(image.prepare(large).pixels.astype(int) - image.prepare(small).pixels).mean() < 3


def test_scores_differ_only_where_decoding_is_reduced() -> None:
    def mean(pixels: np.ndarray) -> np.ndarray:
        return np.full(6, pixels.mean(), np.float32)

    small, large = decode.differences([decode.photograph(0, 600, 450), decode.photograph(0, 2400, 1800)], mean)
    assert small[0, 0] == small[1, 0]
    assert large[0, 0] != large[1, 0]
    assert large[0, 0] == pytest.approx(large[1, 0], abs=0.5)


def test_the_summary_counts_drift_and_what_a_user_is_told_differently() -> None:
    read = np.zeros((4, 2, 6), np.float32)
    read[0, 1, 0] = 1.0  # from harmless to melanoma
    read[1, :, 0] = 0.9, 0.8
    read[2, 1, 1] = 100.0  # like no training image
    read[3, 0, 2:4] = 1.0  # blurry and hairy, and then neither
    assert decode.summarise(read) == {
        "images": 4, "mean": 0.275, "p95": pytest.approx(0.865), "max": 1.0,
        "referrals changed": 1, "abstentions changed": 1, "flags changed": 1,
    }  # fmt: skip


def test_a_folder_without_a_jpeg_is_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(decode.decode, ["--images", str(tmp_path)])
    assert isinstance(result.exception, StartupError)
    assert "no JPEG" in str(result.exception)
