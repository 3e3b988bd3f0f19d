"""Does the exported file say what the trained network says? Measured on images, before anything is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from dermserve.errors import StartupError
from export.onnx import OUTPUTS, ServedModel

LARGEST_DIFFERENCE = 0.005
"""Gate on |Δp| of any reported column for FP32, from the design; what is measured is around 1e-6."""

_CHUNK = 8


@dataclass(frozen=True)
class Parity:
    """Differences of the reported probabilities (0…1) between PyTorch and the exported file on the same images.

    `cam_limit` is no difference: the 99th percentile of the map's positive values on these images, in logits, where the
    pages' fixed colour scale ends.
    """

    images: int
    source: str
    largest: float
    mean: float
    largest_cam: float
    same_order: bool
    cam_limit: float

    def as_dict(self) -> dict[str, float | int | str | bool]:
        return asdict(self)


def measure(model: ServedModel, onnx: Path, pixels: Sequence[NDArray[np.uint8]], source: str) -> Parity:
    """Run both on `pixels` (each uint8 [300, 300, 3]) and compare; `source` says in words what the images are."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    reference: list[list[NDArray[np.float32]]] = []
    exported: list[list[NDArray[np.float32]]] = []
    for start in range(0, len(pixels), _CHUNK):
        batch = np.stack(pixels[start : start + _CHUNK])
        with torch.inference_mode():
            reference.append([output.numpy() for output in model(torch.from_numpy(batch))])
        answers = compiled(batch)
        exported.append([answers[name].copy() for name in OUTPUTS])
    ours = dict(zip(OUTPUTS, map(np.concatenate, zip(*exported, strict=True)), strict=True))
    theirs = dict(zip(OUTPUTS, map(np.concatenate, zip(*reference, strict=True)), strict=True))
    difference = np.abs(ours["probabilities"] - theirs["probabilities"])
    # Order by melanoma probability; images closer to each other than the difference found may swap freely.
    order = np.argsort(theirs["probabilities"][:, 3])
    steps = np.diff(ours["probabilities"][order, 3])
    return Parity(
        images=len(pixels),
        source=source,
        largest=float(difference.max()),
        mean=float(difference.mean()),
        largest_cam=float(np.abs(ours["cam"] - theirs["cam"]).max()),
        same_order=bool((steps >= -2 * difference.max()).all()),
        cam_limit=float(f"{np.percentile(np.maximum(theirs['cam'], 0), 99):.2g}"),
    )


def require(parity: Parity) -> None:
    """Refuse an export that changes the answers.

    Raises:
        StartupError: a probability differs by more than the gate allows.
    """
    if not parity.largest <= LARGEST_DIFFERENCE:
        raise StartupError(
            f"The exported file differs from the trained network by up to {parity.largest:.4f} on {parity.images} images "
            f"(allowed: {LARGEST_DIFFERENCE}); the repository was left as it was."
        )
