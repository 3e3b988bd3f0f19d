from __future__ import annotations

import json
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.image import preprocessing_hash
from dermserve.labels import LEAVES, QUALITY_FLAGS
from dermserve.model_card import CARD_PATH, ONNX_PATH, ModelCard, SeenImages, sha256
from dermserve.settings import Settings


def test_the_committed_card_belongs_to_the_committed_weights_and_this_preprocessing() -> None:
    repository = Settings().model_repository
    card = ModelCard.read(repository)
    assert card.weights_sha256 == sha256(repository / ONNX_PATH)
    assert card.preprocessing == preprocessing_hash()
    assert tuple(card.leaves) == LEAVES
    assert (repository / ONNX_PATH).stat().st_size < 50_000_000
    assert {"sensitivity_95", "sensitivity_90", "balanced"} <= set(card.operating_points)
    for name, level in (("sensitivity_95", 0.95), ("sensitivity_90", 0.90)):
        point = card.operating_points[name]
        assert point.sensitivity.low <= point.sensitivity.value <= point.sensitivity.high
        assert point.sensitivity.value >= level
    assert card.quality.measured
    assert set(card.quality.thresholds) == set(QUALITY_FLAGS)
    assert card.ood.measured
    assert card.ood.thresholds["ood"] > 0
    assert any("medical device" in limit for limit in card.limits)


def test_a_missing_or_broken_card_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="dermserve export"):
        ModelCard.read(tmp_path)
    (tmp_path / CARD_PATH).parent.mkdir(parents=True)
    (tmp_path / CARD_PATH).write_text(json.dumps({"name": "melanoma"}))
    with pytest.raises(StartupError, match="not valid"):
        ModelCard.read(tmp_path)


def test_an_unknown_operating_point_names_the_known_ones() -> None:
    with pytest.raises(StartupError, match="sensitivity_95"):
        ModelCard.read(Settings().model_repository).operating_point("certain")


def test_seen_images_are_known_again_and_only_they() -> None:
    train = [f"ISIC_{i:07d}" for i in range(20_000)]
    seen = SeenImages.of([f"{train[0]}_downsampled", *train[1:]], ["VAL_1"])
    new = [f"NEW_{i}" for i in range(20_000)]
    assert seen.trained_on([*new, train[7], f"{train[8]}_downsampled", train[0], "VAL_1"]) == [
        train[7],
        f"{train[8]}_downsampled",
        train[0],
    ]
    assert seen.fixed_on(["VAL_1", train[1]]) == ["VAL_1"]
    assert len(seen.train) < 7 * 20_000, "seven characters an image: the card stays small"
    assert seen == SeenImages.of(reversed(train), ["VAL_1"])
    assert "ISIC" not in seen.model_dump_json(), "a clinic's file names are no business of the card's readers"


def test_a_card_without_the_list_says_so_and_a_broken_list_is_no_empty_one() -> None:
    card = ModelCard.read(Settings().model_repository)
    assert ModelCard.model_validate(card.model_dump() | {"seen": None}).seen is None
    with pytest.raises(StartupError, match="damaged"):
        SeenImages(train="%", validation="").trained_on(["ISIC_1"])
