from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.progress import Progress

from dermserve.errors import StartupError
from dermserve.model_card import ONNX_PATH, sha256
from dermserve.settings import Settings
from export import device
from export.cache import write
from export.engine import Engine, _build, build, load_timing, read_back
from export.messages import Messages

ONNX = Settings().model_repository / ONNX_PATH


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def built(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """TensorRT-RTX builds without a GPU; it refuses the operations and types that TensorRT refuses, too."""
    return build(ONNX, "tensorrt-rtx", tmp_path_factory.mktemp("out") / "model.engine", cache=cache)


def test_the_committed_file_becomes_an_engine_that_the_runtime_reads(built: Engine) -> None:
    assert built.path.stat().st_size > 20_000_000, "the weights are in it"
    assert sha256(built.path) == built.sha256
    assert (built.precision, built.compute_capability, built.reused) == ("FP16", "any", False)
    assert built.library.startswith("TensorRT-RTX 1.")
    assert built.read_back.startswith("header checked" if device.compute_capability() is None else ("loaded", "header"))


def test_an_fp32_engine_is_another_and_larger_one(built: Engine, cache: Path, tmp_path: Path) -> None:
    full = build(ONNX, "tensorrt-rtx", tmp_path / "model.engine", precision="FP32", cache=cache)
    assert (full.precision, full.reused) == ("FP32", False)
    assert full.path.stat().st_size > 1.2 * built.path.stat().st_size


def test_a_second_build_is_taken_from_the_cache(built: Engine, cache: Path, tmp_path: Path) -> None:
    again = build(ONNX, "tensorrt-rtx", tmp_path / "model.engine", cache=cache)
    assert again == replace(built, path=again.path, reused=True)
    assert again.path.read_bytes() == built.path.read_bytes()


def test_a_damaged_cache_entry_is_built_anew(built: Engine, cache: Path, tmp_path: Path) -> None:
    [entry] = [path for path in cache.iterdir() if built.sha256[:16] in path.name]
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / entry.name).write_bytes(content)
    again = build(ONNX, "tensorrt-rtx", tmp_path / "model.engine", cache=folder)
    assert not again.reused
    assert sha256(again.path) == again.sha256
    [kept] = folder.iterdir()
    assert sha256(kept) == again.sha256, "the damaged one is gone"


def flip_head(content: bytearray) -> None:
    for position in range(200, 20_000, 997):
        content[position] ^= 0xFF


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.__delitem__(slice(len(content) // 2, None)), "no ONNX file, or a damaged one"),
        (lambda content: content.__setitem__(slice(None), b"no graph"), "no ONNX file, or a damaged one"),
        (lambda content: content.clear(), "is damaged"),
        (flip_head, "damaged"),
    ],
    ids=["truncated", "garbage", "empty", "flipped"],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: Callable[[bytearray], None], message: str) -> None:
    content = bytearray(ONNX.read_bytes())
    damage(content)
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tmp_path / "model.onnx", tmp_path, message)


def test_one_flipped_bit_among_the_weights_is_found_by_the_hash_of_the_card(tmp_path: Path) -> None:
    content = bytearray(ONNX.read_bytes())
    content[-1_000_000] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(StartupError, match="not the file that the model card describes"):
        build(tmp_path / "model.onnx", "tensorrt-rtx", tmp_path / "model.engine", sha256=sha256(ONNX))


@pytest.mark.parametrize("opset", [9, 17, 26, 99])
def test_another_opset_is_one_line(tmp_path: Path, opset: int) -> None:
    model = onnx.load(ONNX)
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", tmp_path, f"opset {opset}; opsets 18 to 25 can be built")


@pytest.mark.parametrize(
    ("operation", "message"),
    [("Bernoulli", "does not convert"), ("Hardmax", "could not build the engine: .*Error Code")],
)
def test_an_operation_that_tensorrt_lacks_is_one_line(tmp_path: Path, operation: str, message: str) -> None:
    """The parser knows no Bernoulli; Hardmax over the free batch it takes, and the builder fails."""
    model = onnx.load(ONNX)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = operation
            del node.attribute[:]
            if operation == "Hardmax":
                node.attribute.append(onnx.helper.make_attribute("axis", 0))
    onnx.save(model, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", tmp_path, message)


def test_a_foreign_network_is_refused(tmp_path: Path) -> None:
    model = onnx.load(ONNX)
    del model.graph.output[-1]
    onnx.save(model, tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", tmp_path, "ood differ from the contract")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "model.onnx", tmp_path, "cannot be read: No such file")


def refused(file: Path, folder: Path, message: str) -> None:
    """The build ends in one line that says why, and leaves nothing."""
    with pytest.raises(StartupError, match=message) as caught:
        build(file, "tensorrt-rtx", folder / "out" / "model.engine", cache=folder / "cache")
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 500
    assert not list(folder.glob("out/*"))
    assert not list(folder.glob("cache/*"))


def test_the_library_prints_nothing_itself(tmp_path: Path) -> None:
    """Its messages go to the log; a file that it cannot read must not fill the terminal past the logging."""
    script = (
        "import sys; from pathlib import Path; from export import engine\n"
        "try: engine._build(engine._library('tensorrt-rtx'), b'no graph', None, None)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "does not convert" in done.stdout


@pytest.mark.skipif(device.compute_capability() is not None, reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"NVIDIA GPU, and none was found here.*--recipe"):
        build(ONNX, "tensorrt", tmp_path / "model.plan")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(StartupError, match=r"cannot be loaded.*extra 'tensorrt-rtx'"):
        build(ONNX, "tensorrt-rtx", tmp_path / "model.engine")


def test_an_output_folder_that_cannot_be_made_is_named_before_building(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match=r"file cannot be written: (Not a directory|File exists)"):
        build(ONNX, "tensorrt-rtx", tmp_path / "file" / "model.engine")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a full disk can be made by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_before_building(tiny_disk: Path) -> None:
    with pytest.raises(StartupError, match=r"tiny cannot be written: [0-9]+ MB are needed, 1 MB are free"):
        build(ONNX, "tensorrt-rtx", tiny_disk / "model.engine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StartupError, match="cannot be written: Permission denied"):
        build(ONNX, "tensorrt-rtx", tmp_path / "model.engine")


@pytest.mark.parametrize(
    "damage", [lambda plan: b"x" * 1000, lambda plan: plan[:1_000_000], lambda plan: b"y" + plan[1:]]
)
def test_the_runtime_refuses_a_damaged_engine(built: Engine, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StartupError, match="cannot be read back"):
        read_back(damage(built.path.read_bytes()), "tensorrt-rtx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_beside_the_engines(tmp_path: Path) -> None:
    """With TensorRT-RTX, whose timing cache has the interface and holds nothing; damaged ones only TensorRT refuses."""
    import tensorrt_rtx_bindings as trt

    timing = tmp_path / "cache" / "timing.cache"
    _build(trt, ONNX.read_bytes(), timing, None)
    assert timing.stat().st_size > 0
    config = trt.Builder(Messages(trt).logger).create_builder_config()
    load_timing(config, timing)
    assert bytes(config.get_timing_cache().serialize()) == timing.read_bytes()


def test_ctrl_c_stops_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    steps = 0

    class Pressed(Progress):
        def update(self, *args: Any, **keywords: Any) -> None:
            nonlocal steps
            steps += 1
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(ONNX, "tensorrt-rtx", tmp_path / "model.engine", progress=Pressed(disable=True))
    assert steps < 20, "of two thousand"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_remains_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "model.engine").mkdir()
    with pytest.raises(StartupError, match="cannot be written"):
        write(tmp_path / "model.engine", b"plan")
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]
