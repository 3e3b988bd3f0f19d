"""ONNX file → TensorRT engine (`model.plan`), by TensorRT 10 or 11 on a GPU machine, or TensorRT-RTX anywhere.

An engine belongs to one TensorRT version and GPU architecture: build it inside the container that will serve it. An
RTX engine is not a plan for Triton's `tensorrt` backend; it is built here to prove that the graph converts.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from dermserve.errors import StartupError
from dermserve.image import SIDE
from dermserve.model_card import ONNX_PATH
from export.onnx import INPUT

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_FILES = {"tensorrt": "model.plan", "tensorrt-rtx": "model.rtx.engine"}
_BATCHES = (1, 64, 128)  # smallest, tuned for, largest; the largest is `max_batch_size` in configs/tensorrt.pbtxt


def build(repository: Path, target: str) -> Path:
    """Build the engine for the repository's ONNX file and put it beside it; returns its path.

    Raises:
        StartupError: the library or a GPU is missing, or the graph does not convert.
    """
    try:
        trt: Any = importlib.import_module(_MODULES[target])
    except ImportError as error:
        raise StartupError(f"--target {target} needs the extra '{target}' (uv pip install -e '.[{target}]')") from error
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # TensorRT proper looks for a GPU here; RTX builds without one
        raise StartupError(
            "TensorRT finds no usable GPU; build the engine on the machine that will serve it."
        ) from error
    # Networks are always strongly typed from TensorRT 11 on; before, a flag asks for it. Precision stands in the ONNX file.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse((repository / ONNX_PATH).read_bytes()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise StartupError(f"The ONNX file does not convert: {reasons}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, SIDE, SIDE, 3) for batch in _BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StartupError("TensorRT could not build an engine; its messages stand above.")
    path = (repository / ONNX_PATH).with_name(_FILES[target])
    path.write_bytes(bytes(plan))
    return path
