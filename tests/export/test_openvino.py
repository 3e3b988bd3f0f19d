from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from dermserve import engine, sample
from dermserve.errors import StartupError
from dermserve.image import prepare
from dermserve.model_card import INT8_PATH, ONNX_PATH, ModelCard, sha256
from export import openvino as quantising
from export import parity, targets
from export.onnx import ServedModel, export_onnx
from export.parity import Answers, Images
from export.sets import Data
from tests.export.conftest import TEMPERATURE, card_content
from training.model import create_model

IMAGES = 8
ALLOWED = 1e-5


def content(answers: Answers, chosen: Sequence[int]) -> tuple[float, list[float]]:
    """A gate that everything passes."""
    return 1.0, [0.0] * len(chosen)


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    return [prepare(sample.jpeg(seed)).pixels for seed in range(IMAGES)]


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the same kind, small: expansions, depthwise convolutions, gated projections, head."""
    torch.manual_seed(0)
    network = create_model(architecture="test_efficientnet").eval()
    with torch.no_grad():
        network.classifier.weight.mul_(20)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    export_onnx(ServedModel(network, TEMPERATURE), path)
    return path


@pytest.fixture(scope="module")
def expected(onnx: Path, pixels: list[np.ndarray]) -> Answers:
    return parity.answer(parity.reference(onnx), pixels)


def quantised_types(model: openvino.Model) -> list[str]:
    """What stands behind each quantised activation."""
    return [
        target.get_node().get_type_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() != "Constant"
        for target in node.output(0).get_target_inputs()
    ]


def test_balancing_channels_changes_no_answer(onnx: Path, pixels: list[np.ndarray], expected: Answers) -> None:
    model = quantising.fused(onnx)
    assert quantising.balance(model, pixels) == 2, "both gated projections are found"
    balanced = parity.answer(parity.reference(model), pixels)
    assert balanced["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


def test_balancing_evens_out_what_the_projections_read(onnx: Path, pixels: list[np.ndarray]) -> None:
    def spread(model: openvino.Model) -> list[float]:
        gated = [found for node in quantising._pointwise(model) if (found := quantising._gate(node))]
        return [float(np.std(np.log(np.maximum(one, 1e-9)))) for one in quantising._largest(model, gated, pixels)]

    model = quantising.fused(onnx)
    before = spread(model)
    quantising.balance(model, pixels)
    assert all(after < first for after, first in zip(spread(model), before, strict=True))


def test_a_shift_of_all_leaves_is_taken_off(onnx: Path, pixels: list[np.ndarray], expected: Answers) -> None:
    model = quantising.fused(onnx)
    shifted = dict(expected)
    leaves = expected["diagnoses"] * np.exp(np.linspace(-0.5, 0.5, 9, dtype=np.float32))
    shifted["diagnoses"] = leaves / leaves.sum(axis=1, keepdims=True)
    quantising.centre(model, shifted, pixels)
    found = parity.answer(parity.reference(model), pixels)
    assert found["diagnoses"] == pytest.approx(shifted["diagnoses"], abs=1e-4)


def test_only_pointwise_convolutions_are_quantised_and_answers_stay_close(
    onnx: Path, pixels: list[np.ndarray], expected: Answers
) -> None:
    model = quantising.quantise(onnx, pixels, pixels, content)
    assert set(quantised_types(model)) == {"Convolution"}
    answers = parity.answer(parity.reference(model), pixels)
    difference = np.abs(answers["probabilities"] - expected["probabilities"])
    assert 0 < difference.max() < 0.1


def test_what_is_too_sensitive_goes_back_to_fp32(onnx: Path, pixels: list[np.ndarray], expected: Answers) -> None:
    def strict(answers: Answers, chosen: Sequence[int]) -> tuple[float, list[float]]:
        """A gate that eight bits pass only where they change next to nothing."""
        each = np.abs(answers["probabilities"] - expected["probabilities"][list(chosen)]).max(axis=1)
        return 1.0 - float(each.max()) / ALLOWED, (-each).tolist()

    free = quantising.quantise(onnx, pixels, pixels, content)
    gated = quantising.quantise(onnx, pixels, pixels, strict)
    assert len(quantised_types(gated)) < len(quantised_types(free))
    assert strict(parity.answer(parity.reference(gated), pixels), range(IMAGES))[0] >= 0


@pytest.fixture
def repository(onnx: Path, tmp_path: Path) -> Path:
    target = tmp_path / ONNX_PATH
    target.parent.mkdir(parents=True)
    target.write_bytes(onnx.read_bytes())
    content = card_content() | {"weights_sha256": sha256(target), "ood": {"measured": False}}
    ModelCard.model_validate(content).write(tmp_path)
    return tmp_path


@pytest.fixture
def data(pixels: list[np.ndarray]) -> Data:
    truth = np.arange(IMAGES) % 2 == 0
    return Data(pixels, {"val": Images("val", pixels, truth), "a-test": Images("a-test", pixels[:4], truth[:4])})


def test_an_int8_model_that_passes_is_served_and_its_parity_is_in_the_card(
    repository: Path, data: Data, monkeypatch: pytest.MonkeyPatch, pixels: list[np.ndarray]
) -> None:
    monkeypatch.setattr(parity, "AUC_LOSS", 1.0)
    monkeypatch.setattr(parity, "SENSITIVITY_LOSS", 1.0)
    said: list[str] = []
    targets.openvino_int8(repository, data, said.append)
    record = ModelCard.read(repository).engines["openvino"]
    assert record.precision == "INT8"
    assert set(record.parity) == {"val", "a-test"}
    assert record.parity["val"].images == IMAGES
    assert record.parity["val"].auc_change is not None
    assert any("ROC-AUC" in line for line in said)
    answers = engine.load(repository, "INT8").infer(np.stack(pixels))
    own = engine.load(repository, "FP32").infer(np.stack(pixels))
    assert 0 < np.abs(answers["probabilities"] - own["probabilities"]).max() < 0.1
    assert list(repository.glob(".export-*")) == []


def test_an_int8_model_that_loses_too_much_is_not_served(
    repository: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / INT8_PATH).write_text("of earlier weights")
    # No model passes a gate that asks for a gain; accuracy control would take minutes to find that out.
    monkeypatch.setattr(targets, "_quantise", lambda onnx, calibration, *_: quantising.fused(onnx))
    monkeypatch.setattr(parity, "headroom", lambda found: -1.0)
    said: list[str] = []
    targets.openvino_int8(repository, data, said.append)
    record = ModelCard.read(repository).engines["openvino"]
    assert record.precision == "FP32"
    assert "more than the gate allows" in record.refused
    assert set(record.tried) == {"val", "a-test"}, "what it lost stays on record"
    assert not (repository / INT8_PATH).exists(), "nor is an older one"
    assert engine.load(repository).precision == "FP32"
    assert any("more than the gate allows" in line for line in said)


def test_int8_needs_labels(repository: Path, pixels: list[np.ndarray]) -> None:
    with pytest.raises(StartupError, match="labelled images"):
        targets.openvino_int8(repository, Data(pixels, {"val": Images("val", pixels)}), lambda line: None)
