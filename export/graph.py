"""The exported ONNX file, read with suspicion: a damaged or foreign one is named before anything is built from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dermserve.errors import StartupError
from dermserve.image import SIDE

INPUT = "pixels"
OUTPUTS: dict[str, tuple[int, ...]] = {
    "probabilities": (4,), "diagnoses": (9,), "cam": (10, 10), "embedding": (1536,), "ood": (1,),
}  # fmt: skip
"""Name and shape per image of every output, all FP32."""

OPSETS = range(18, 26)
"""ReduceMean takes its axes as an input from 18 on; TensorRT 11's parser is documented up to 25, and reads newer
graphs without a word."""


def read(path: Path, sha256: str | None = None) -> Any:
    """The file as an `onnx.ModelProto`, with the contract's tensors: uint8 [N, 300, 300, 3] → `OUTPUTS`, N free.

    Args:
        path: an ONNX file as `dermserve export` writes it.
        sha256: what it must hash to (the card's `weights_sha256`). Only this finds a flipped bit among the weights.

    Raises:
        StartupError: it is missing, damaged, of another opset, or breaks the contract.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"The ONNX file {path} cannot be read: {error.strerror}.") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise StartupError(f"{path} is not the file that the model card describes: it is damaged, or was replaced.")
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise StartupError(f"{path} is no ONNX file, or a damaged one.") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if model.graph.node and opset not in OPSETS:
        raise StartupError(
            f"{path} is written in ONNX opset {opset}; opsets {OPSETS.start} to {OPSETS.stop - 1} can be built "
            "(`dermserve export` writes 18)."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StartupError(f"{path} is damaged: {one_line(error)}") from error
    found = {value.name: _tensor(value) for value in (*model.graph.input, *model.graph.output)}
    float32 = onnx.TensorProto.FLOAT
    wanted = {INPUT: (onnx.TensorProto.UINT8, None, SIDE, SIDE, 3)}
    wanted |= {name: (float32, None, *shape) for name, shape in OUTPUTS.items()}
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise StartupError(f"{path} is not a network of this server: {', '.join(differing)} differ from the contract.")
    return model


def one_line(text: object, limit: int = 300) -> str:
    """A library's message as one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _tensor(value: Any) -> tuple[int | None, ...]:
    """Element type and shape; None for a free dimension."""
    tensor = value.type.tensor_type
    return (tensor.elem_type, *(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim))
