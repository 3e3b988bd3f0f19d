from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest

from dermserve import sample
from dermserve.image import prepare
from dermserve.model_card import ONNX_PATH
from dermserve.settings import Settings
from export.recipe import Recipe, recipe

ONNX = Settings().model_repository / ONNX_PATH

# No TensorRT can be had here: this stand-in takes trtexec's arguments, runs the file on OpenVINO, and writes the answers
# in trtexec's format (exportJSONOutput in its sampleReporting.cpp).
STAND_IN = f"""#!{sys.executable}
import json, pathlib, shutil, sys
import numpy, openvino
options = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
if "saveEngine" in options:
    assert "stronglyTyped" in options and "noTF32" in options, sys.argv
    assert options["maxShapes"] == "pixels:128x300x300x3", sys.argv
    shutil.copy(options["onnx"], options["saveEngine"])
else:
    shape = [int(side) for side in options["shapes"].removeprefix("pixels:").split("x")]
    pixels = numpy.fromfile(options["loadInputs"].removeprefix("pixels:"), numpy.uint8).reshape(shape)
    engine = pathlib.Path(options["loadEngine"]).read_bytes()
    found = openvino.compile_model(openvino.Core().read_model(engine, b""), "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})(pixels)
    outputs = [
        {{"name": port.any_name, "dimensions": "x".join(map(str, value.shape)), "values": (value * SCALE).ravel().tolist()}}
        for port, value in found.items()
    ]
    text = json.dumps(outputs).replace("NaN", "nan")
    pathlib.Path(options["exportOutput"]).write_text(text)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    pixels = np.stack([prepare(sample.jpeg(seed)).pixels for seed in range(2)])
    core = openvino.Core()
    answers = core.compile_model(core.read_model(ONNX), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)
    return recipe(ONNX, tmp_path_factory.mktemp("recipe") / "tensorrt", pixels, answers["probabilities"])


def build(written: Recipe, folder: Path, scale: str) -> subprocess.CompletedProcess[str]:
    (folder / "bin").mkdir()
    (folder / "bin/trtexec").write_text(STAND_IN.replace("SCALE", scale))
    (folder / "bin/trtexec").chmod(0o755)
    (folder / "served").mkdir()
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    # From elsewhere, with a relative path: people do.
    return subprocess.run(
        ["sh", written.script, "served"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_script_builds_checks_and_installs(written: Recipe, tmp_path: Path) -> None:
    done = build(written, tmp_path, "1")
    assert done.returncode == 0, done.stderr
    assert "on 2 images (allowed: 0.005)" in done.stdout
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["model.plan"]


@pytest.mark.parametrize(
    ("scale", "message"), [("1.02", "answers differ too much"), ("float('nan')", "answers are no numbers")]
)
def test_an_engine_with_wrong_answers_is_not_installed(
    written: Recipe, tmp_path: Path, scale: str, message: str
) -> None:
    done = build(written, tmp_path, scale)
    assert done.returncode == 1
    assert message in done.stderr
    assert list((tmp_path / "served").iterdir()) == []


def test_without_trtexec_one_line_says_so(written: Recipe, tmp_path: Path) -> None:
    done = subprocess.run(["sh", written.script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "trtexec failed" in done.stderr
    assert "not found" in done.stderr


def test_a_file_damaged_on_the_way_is_not_built(written: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    folder.mkdir()
    for path in written.script.parent.iterdir():
        content = bytearray(path.read_bytes())
        if path.suffix == ".onnx":
            content[-1000] ^= 1
        (folder / path.name).write_bytes(content)
    done = subprocess.run(["sh", folder / "build.sh", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sha256sum failed" in done.stderr


def test_the_command_alone_is_for_both_versions(written: Recipe) -> None:
    assert written.command.startswith('trtexec --onnx=model.fp16.onnx --saveEngine="model.plan" --stronglyTyped')
    assert "--minShapes=pixels:1x300x300x3 --optShapes=pixels:64x300x300x3" in written.command
    assert json.loads((written.script.parent / "expected.json").read_text())["batches"] == [1, 1]
