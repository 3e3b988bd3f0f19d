from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from click.testing import CliRunner, Result

from dermserve import sample
from dermserve.errors import StartupError
from dermserve.image import prepare
from dermserve.labels import LEAVES, QUALITY_FLAGS
from dermserve.model_card import CARD_PATH, ONNX_PATH, ModelCard, sha256
from export.commands import export
from export.onnx import OUTPUTS, ServedModel
from tests.export.conftest import TEMPERATURE
from training.model import Novelty, load_checkpoint, normalise, save_checkpoint


@pytest.fixture(scope="module")
def repository(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    done = CliRunner().invoke(export, [str(run_folder), "--repository", str(folder), "--count", "3"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([prepare(sample.jpeg(seed)).pixels for seed in range(3)])


@pytest.fixture(scope="module")
def answers(repository: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(repository / ONNX_PATH), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(pixels)
    return {name: found[name].copy() for name in OUTPUTS}


def test_the_graph_normalises_and_calibrates_as_training_does(
    run_folder: Path, pixels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    network, _ = load_checkpoint(run_folder / "final.pt")
    with torch.inference_mode():
        logits = network(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    expected = torch.softmax(logits / TEMPERATURE, dim=1).numpy()
    assert np.abs(answers["diagnoses"] - expected).max() < 1e-4
    assert expected.std(axis=1).min() > 0.01, "the leaves differ, so a wrong temperature would show"


def test_the_map_and_the_embedding_add_up_to_the_melanoma_logit(
    run_folder: Path, pixels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    network, _ = load_checkpoint(run_folder / "final.pt")
    head, melanoma = network.classifier, LEAVES.index("MEL")
    with torch.inference_mode():
        logits = network(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()
    bias = head.bias.detach().numpy()
    assert answers["cam"].mean(axis=(1, 2)) + bias[melanoma] == pytest.approx(logits[:, melanoma], abs=1e-4)
    rebuilt = answers["embedding"] @ head.weight.detach().numpy().T + bias
    assert np.abs(rebuilt - logits).max() < 1e-3


def test_the_distance_is_computed_in_the_graph_as_in_training(
    run_folder: Path, pixels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    _, metadata = load_checkpoint(run_folder / "final.pt")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    expected = Novelty(metadata["ood"])(images, torch.from_numpy(answers["embedding"])).numpy()
    assert answers["ood"].shape == (3, 1)
    assert answers["ood"] == pytest.approx(expected, rel=1e-3)
    assert np.ptp(answers["ood"]) > 0, "images differ"


def test_a_run_without_a_distance_gives_zero_and_says_so(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    network, metadata = load_checkpoint(run / "final.pt")
    del metadata["ood"]
    save_checkpoint(run / "final.pt", network, metadata)
    card = json.loads((run / "card.json").read_text())
    del card["ood"]
    (run / "card.json").write_text(json.dumps(card))
    done = CliRunner().invoke(export, [str(run), "--repository", str(tmp_path), "--count", "1"])
    assert done.exit_code == 0, done.output
    written = ModelCard.read(tmp_path)
    assert not written.ood.measured
    assert written.quality.measured
    assert set(written.quality.thresholds) == set(QUALITY_FLAGS)


def test_the_file_is_self_contained_checked_and_free_of_paths(repository: Path) -> None:
    file = repository / ONNX_PATH
    graph = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(graph)
    assert file.stat().st_size < 50_000_000
    assert [port.name for port in graph.graph.input] == ["pixels"]
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"
    content = file.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.home()).encode() + b"/" not in content


def test_the_card_names_these_weights_and_the_parity_found(repository: Path) -> None:
    card = ModelCard.read(repository)
    assert card.weights_sha256 == sha256(repository / ONNX_PATH)
    assert card.temperature == TEMPERATURE
    assert card.version == f"0.0.0+{card.weights_sha256[:8]}", "the version changes with the weights"
    assert card.export["cam_limit"] > 0
    assert card.export["parity"]["images"] == 3
    assert card.export["parity"]["largest"] < 1e-4


def test_parity_sees_a_wrong_graph_and_stops_the_export(
    run_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import run as exporting

    def colder(network: torch.nn.Module, temperature: float, novelty: dict[str, torch.Tensor] | None) -> ServedModel:
        model = ServedModel(network, temperature, novelty)
        changed = ServedModel(network, temperature * 1.2, novelty).eval()
        model.forward_of_torch = changed
        return model

    monkeypatch.setattr(exporting, "ServedModel", colder)
    monkeypatch.setattr(exporting, "_torch", lambda model, real=exporting._torch: real(model.forward_of_torch))
    done = failing(run_folder, repository)
    assert isinstance(done.exception, StartupError)
    assert "repository was left as it was" in done.exception.detail


def failing(run: Path, repository: Path) -> Result:
    before = {path: path.read_bytes() for path in (repository / CARD_PATH, repository / ONNX_PATH)}
    done = CliRunner().invoke(export, [str(run), "--repository", str(repository), "--count", "1"])
    assert {path: path.read_bytes() for path in before} == before, "a failed export changes nothing"
    assert list(repository.glob(".export-*")) == []
    return done


@pytest.mark.parametrize(
    ("change", "message"),
    [({"preprocessing": "0" * 64}, "another image preparation"), ({"limits": None}, "card is not complete")],
)
def test_a_card_that_does_not_fit_is_refused(
    run_folder: Path, repository: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    card = json.loads((run / "card.json").read_text()) | change
    (run / "card.json").write_text(json.dumps(card))
    done = failing(run, repository)
    assert isinstance(done.exception, StartupError)
    assert message in done.exception.detail


def test_an_unfinished_run_is_refused(repository: Path, tmp_path: Path) -> None:
    done = failing(tmp_path, repository)
    assert isinstance(done.exception, StartupError)
    assert "finish the training run first" in done.exception.detail
