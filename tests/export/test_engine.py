from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.model_card import ONNX_PATH
from dermserve.settings import Settings
from export.engine import build


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / ONNX_PATH).parent.mkdir(parents=True)
    shutil.copy(Settings().model_repository / ONNX_PATH, tmp_path / ONNX_PATH)
    return tmp_path


def test_tensorrt_converts_the_committed_graph(repository: Path) -> None:
    """TensorRT-RTX builds without a GPU; it refuses the operations and types that TensorRT's plans refuse, too."""
    engine = build(repository, "tensorrt-rtx")
    assert engine.parent == (repository / ONNX_PATH).parent
    assert engine.stat().st_size > 20_000_000, "the weights are in it"


def test_a_missing_library_is_named(repository: Path) -> None:
    with pytest.raises(StartupError, match="needs the extra 'tensorrt'"):
        build(repository, "tensorrt")


def test_a_graph_that_does_not_convert_is_an_error(repository: Path) -> None:
    (repository / ONNX_PATH).write_bytes(b"no graph")
    with pytest.raises(StartupError, match="does not convert"):
        build(repository, "tensorrt-rtx")
