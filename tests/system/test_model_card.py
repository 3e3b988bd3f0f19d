"""The served model measures itself: `dermserve evaluate --write-card` against the real running stack."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dermserve.errors import StartupError
from dermserve.model_card import CARD_PATH, INT8_PATH, ONNX_PATH, ModelCard, SeenImages, sha256
from dermserve.settings import Settings
from tests.system.stack import Stack
from tests.training.conftest import make_2019, make_2020, write
from training import datasets, splits
from training.commands import evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn ISIC 2019 and 2020 and a test set of twelve images."""
    root = tmp_path_factory.mktemp("data")
    make_2019(root / "isic2019")
    make_2020(root / "isic2020")
    (root / "small-test").mkdir()
    rows: list[dict[str, object]] = []
    for number in range(12):
        shutil.copy(root / f"isic2020/train/ISIC_{9000000 + number}.jpg", root / f"small-test/NEW_{number:02d}.jpg")
        rows.append({"image": f"NEW_{number:02d}", "melanoma": int(number % 3 == 0)})
    write(root / "small-test/labels.csv", rows)
    return root


@pytest.fixture
def repository(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed repository whose card says that the weights were trained on `data`."""
    copy = tmp_path / "model_repository"
    for path in (CARD_PATH, ONNX_PATH, INT8_PATH, INT8_PATH.with_suffix(".bin")):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Settings().model_repository / path, copy / path)
    parts = splits.split(datasets.read(data))
    seen = SeenImages.of((record.name for record in parts.train), (record.name for record in parts.validation))
    card = ModelCard.read(copy)
    card.model_copy(update={"seen": seen, "training": {"config": {"seed": 0}}}).write(copy)
    monkeypatch.setenv("DERMSERVE_MODEL_REPOSITORY", str(copy))
    return copy


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(evaluate, [*map(str, arguments), "--bootstrap", "50"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_the_card_gets_what_predict_and_evaluate_print(
    stack: Stack, data: Path, repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    page, keep = tmp_path / "docs/model-card.md", tmp_path / "keep"
    page.parent.mkdir()
    before = ModelCard.read(repository)
    printed = invoke("--write-card", data, "--url", stack.grpc, "--page", page, "--keep", keep).output
    card = ModelCard.read(repository)
    assert {"val", "small-test"} <= set(card.metrics)
    assert card.measured.startswith("the served model")
    assert card.operating_points["balanced"].threshold == before.operating_points["balanced"].threshold
    assert (card.weights_sha256, card.seen, card.temperature) == (
        before.weights_sha256,
        before.seen,
        before.temperature,
    )
    assert card.evaluations["val"].leaves is not None

    out, figures = tmp_path / "out.csv", tmp_path / "figures.json"
    done = stack.run("predict", str(data / "small-test"), "--csv", str(out))
    assert done.returncode == 0, done.stderr
    by_hand = invoke(out, data / "small-test/labels.csv", "--json", figures).output
    found = json.loads(figures.read_text())
    for name, figure in card.metrics["small-test"].items():
        assert found["metrics"][name] == figure.model_dump(), name
        assert f"{figure.value:.4f} │ {figure.low:.4f} – {figure.high:.4f}" in by_hand
        assert f"{figure.value:.4f} │ {figure.low:.4f} – {figure.high:.4f}" in printed
    points = card.evaluations["small-test"].operating_points
    for name, point in points.items():
        assert found["operating_points"][name]["sensitivity"] == point.sensitivity.model_dump()
    text = page.read_text()
    assert f"{card.metrics['val']['roc_auc'].value:.3f}" in text
    assert (page.parent / "images/model-card/small-test-roc.png").exists()

    # The validation images by hand, from what was kept.
    invoke(keep / "val.csv", data, "--json", figures)
    found = json.loads(figures.read_text())
    assert found["metrics"] == {name: figure.model_dump() for name, figure in card.metrics["val"].items()}
    assert found["role"].startswith("validation: ")
    with (keep / "val.leaves.csv").open() as file:
        rows = list(csv.reader(file))
    assert np.array(rows[1:])[:, 1:].astype(float).sum(axis=1) == pytest.approx(1, abs=1e-4)

    # One label of the test set changes, and so does the card.
    table = data / "small-test/labels.csv"
    original = table.read_text()
    table.write_text(original.replace("NEW_01,0", "NEW_01,1"))
    try:
        invoke("--write-card", data, "--url", stack.grpc, "--page", page)
    finally:
        table.write_text(original)
    changed = ModelCard.read(repository).metrics["small-test"]
    assert changed["roc_auc"].positives == card.metrics["small-test"]["roc_auc"].positives + 1
    assert changed["roc_auc"].value != card.metrics["small-test"]["roc_auc"].value
    assert page.read_text() != text


def test_a_server_with_other_weights_is_noticed_before_anything_is_written(
    stack: Stack, data: Path, repository: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(repository / ONNX_PATH)
    biases = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [9]]
    assert biases
    for tensor in biases:
        values = onnx.numpy_helper.to_array(tensor) + np.linspace(2, 0, 9, dtype=np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, repository / ONNX_PATH)
    # As an export leaves it: the INT8 model of the earlier weights is gone.
    card = ModelCard.read(repository)
    card.model_copy(update={"engines": {}, "weights_sha256": sha256(repository / ONNX_PATH)}).write(repository)
    before = (repository / CARD_PATH).read_bytes()
    with pytest.raises(StartupError, match=r"other weights than .* Start the server again after an export"):
        invoke("--write-card", data, "--url", stack.grpc, "--page", tmp_path / "page.md")
    assert (repository / CARD_PATH).read_bytes() == before
    assert not (tmp_path / "page.md").exists()
