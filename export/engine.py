"""ONNX file → TensorRT engine, by TensorRT 10 or 11 on the GPU machine that will serve it, or TensorRT-RTX anywhere.

An engine belongs to one TensorRT version and GPU architecture. An RTX engine is for RTX workstations (compute
capability 8.0, 8.6, 8.9 and 12.x) and is not a plan for Triton's `tensorrt` backend; it needs no GPU to be built, and so
proves on any machine that the graph converts.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dermserve.errors import StartupError
from dermserve.image import SIDE
from export import cache as engines
from export import device, graph, half
from export.messages import Messages, interruptible, progress_monitor

Target = Literal["tensorrt", "tensorrt-rtx"]
Precision = Literal["FP16", "FP32"]

BATCHES: Final = (1, 64, 128)
"""Smallest, tuned for, largest; the largest is `max_batch_size` in the classifier's config.pbtxt."""

_MODULES: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_TITLES: Final = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_ANY_GPU: Final = "any"


@dataclass(frozen=True)
class Engine:
    """A built engine and how far it was read back.

    `reused` tells that it came out of the cache. `read_back` is a sentence: all that its runtime could check here.
    """

    path: Path
    precision: Precision
    library: str
    compute_capability: str
    sha256: str
    reused: bool
    read_back: str


def build(
    onnx: Path,
    target: Target,
    engine: Path,
    *,
    precision: Precision = "FP16",
    sha256: str | None = None,
    cache: Path | None = None,
    progress: Any = None,
) -> Engine:
    """Build `engine` from the exported FP32 file `onnx`, or take it out of the cache, and read it back.

    Args:
        onnx: FP32 ONNX file; FP16 is made of it on the way, the file stays as it is.
        target: `tensorrt` needs a GPU, `tensorrt-rtx` does not.
        engine: file to write; it appears whole or not at all.
        precision: what the convolutions compute in (see `export.half`); FP32 is true FP32, without TF32.
        sha256: what `onnx` must hash to, as the model card has it.
        cache: folder of engines and timing caches of earlier builds; None: build, and keep nothing.
        progress: a `rich.progress.Progress` on which to show the builder's phases.

    Raises:
        StartupError: the library or a GPU is missing, the file is damaged or does not convert, or nothing can be
            written. The message is one line; all that TensorRT said is in the log at level DEBUG.
    """
    capability = _capability(target)
    trt = _library(target)
    model = graph.read(onnx, sha256)
    if precision == "FP16":
        model = half.convert(model)
    content = model.SerializeToString(deterministic=True)
    key = engines.Key(hashlib.sha256(content).hexdigest(), f"{target}-{trt.__version__}", capability, BATCHES)
    for folder in (engine.parent, *([cache] if cache else [])):
        engines.require_room(folder, 2 * len(content))
    plan = engines.find(cache, key) if cache else None
    reused = plan is not None
    if plan is None:
        timing = cache / f"timing_{key.library}_sm{capability}.cache" if cache and target == "tensorrt" else None
        plan = _build(trt, content, timing, progress)
    found = read_back(plan, target)
    if cache and not reused:
        engines.keep(cache, key, plan)
    engines.write(engine, plan)
    return Engine(
        engine, precision, f"{_TITLES[target]} {trt.__version__}", capability, hashlib.sha256(plan).hexdigest(),
        reused, found,
    )  # fmt: skip


def read_back(plan: bytes, target: Target) -> str:
    """Let the runtime read a built engine; returns what it could check, as a sentence.

    With a GPU that is everything but the numbers: the engine is loaded, and its tensors must be the contract's. Without
    one the runtime reads the header (its mark, the library's version, the length of the file) and stops where it
    would talk to the driver; a flipped byte further in is not seen.

    Raises:
        StartupError: the engine is damaged, belongs to another version, or has other tensors.
    """
    trt = _library(target)
    messages = Messages(trt)
    runtime = trt.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        complaint = messages.first_error()
        if target == "tensorrt" or "Serialization" in complaint:
            raise StartupError(f"The engine cannot be read back: {complaint}")
        if device.compute_capability() is None:
            return "header checked by the runtime; there is no GPU here to load it on"
        return f"header checked by the runtime; this GPU cannot load it: {complaint}"
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {name: (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))) for name in names}
    profile = [tuple(shape) for shape in engine.get_tensor_profile_shape(graph.INPUT, 0)]
    if tensors != _contract(trt) or profile != _profile():
        raise StartupError(f"The engine's tensors are not those of the contract: {tensors}, {profile}.")
    return "loaded on this GPU; tensors, types and batch sizes are the contract's"


def _capability(target: Target) -> str:
    if target == "tensorrt-rtx":
        return _ANY_GPU
    capability = device.compute_capability()
    if capability is None:
        raise StartupError(
            "TensorRT builds engines on an NVIDIA GPU, and none was found here: build on the machine that will serve "
            "(`dermserve export --target tensorrt --recipe` writes the commands)."
        )
    return capability


def _library(target: Target) -> Any:
    try:
        return importlib.import_module(_MODULES[target])
    except (ImportError, OSError) as error:  # OSError: the Python part is there and a shared library is not
        raise StartupError(
            f"{_TITLES[target]} cannot be loaded ({graph.one_line(error, 120)}): "
            f"install the extra '{target}' (uv pip install -e '.[{target}]')."
        ) from error


def _build(trt: Any, content: bytes, timing: Path | None, progress: Any) -> bytes:
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    # From TensorRT 11 on networks are always strongly typed, and the flag is ignored.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(content):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise StartupError(f"The network does not convert: {graph.one_line(reasons)}")
    parsed = [network.get_input(index) for index in range(network.num_inputs)]
    parsed += [network.get_output(index) for index in range(network.num_outputs)]
    tensors = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in parsed}
    if tensors != _contract(trt):
        raise StartupError(f"TensorRT reads other tensors from the network than the contract's: {tensors}.")
    config = builder.create_builder_config()
    # What is left FP32 was left so for its precision; TF32 has FP16's.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(graph.INPUT, *_profile())
    config.add_optimization_profile(profile)
    if timing is not None:
        load_timing(config, timing)
    with interruptible() as pressed:
        config.progress_monitor = monitor = progress_monitor(trt, progress, pressed)  # the name keeps it alive
        plan = builder.build_serialized_network(network, config)
        del monitor
    if plan is None:
        raise StartupError(f"TensorRT could not build the engine: {messages.first_error()}")
    if timing is not None:
        engines.write(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def load_timing(config: Any, path: Path) -> None:
    """Give the builder the timings of earlier builds; those of another GPU or version, or damaged ones, it forgets."""
    kept = path.read_bytes() if path.is_file() else b""
    for content in (kept, b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return


def _profile() -> Sequence[tuple[int, ...]]:
    return [(batch, SIDE, SIDE, 3) for batch in BATCHES]


def _contract(trt: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    outputs = {name: (trt.float32, (-1, *shape)) for name, shape in graph.OUTPUTS.items()}
    return {graph.INPUT: (trt.uint8, (-1, SIDE, SIDE, 3)), **outputs}
