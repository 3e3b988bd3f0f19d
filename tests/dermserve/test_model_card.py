from __future__ import annotations

import json
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.image import preprocessing_hash
from dermserve.labels import LEAVES
from dermserve.model_card import CARD_PATH, ONNX_PATH, ModelCard, sha256
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
    assert not card.quality.measured
    assert not card.ood.measured
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
