"""Does an engine say what the network says? Measured on the same images, before anything is replaced.

FP32 and FP16 may differ in rounding alone: a bound on every probability. INT8 is another network: it is judged by what
it would do to patients, the ROC-AUC and the sensitivity at the card's operating points on labelled images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dermserve.errors import StartupError
from dermserve.labels import COLUMNS
from dermserve.model_card import Parity

LARGEST_DIFFERENCE: Final = 0.005
"""Gate on |Δp| of any reported column for FP32 and FP16, from the design."""
AUC_LOSS: Final = 0.002
"""Gate on what INT8 may lose of the ROC-AUC on validation images, from the design."""
SENSITIVITY_LOSS: Final = 0.005
"""Gate on what INT8 may lose of the sensitivity at any operating point on validation images, from the design."""

Pixels = NDArray[np.uint8]
Answers = Mapping[str, NDArray[np.float32]]
"""Outputs by name, [N, …]."""
MELANOMA: Final = COLUMNS.index("Melanoma")
_CHUNK: Final = 8


@dataclass(frozen=True)
class Images:
    """Prepared images (each uint8 [300, 300, 3]); `truth` [N] says which show a melanoma, where that is known."""

    source: str
    pixels: Sequence[NDArray[np.uint8]]
    truth: NDArray[np.bool_] | None = None


class Model:
    """A compiled OpenVINO model as a function from uint8 [N, 300, 300, 3] to `Answers`."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}

    def __call__(self, pixels: NDArray[np.uint8]) -> Answers:
        found = self._compiled(pixels)
        return {name: found[index].copy() for name, index in self._names.items()}


def reference(model: Path | Any) -> Model:
    """A file or an OpenVINO model, compiled for all cores in FP32."""
    core = openvino.Core()
    read = core.read_model(model) if isinstance(model, Path) else model
    return Model(core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))


def answer(model: Any, pixels: Sequence[NDArray[np.uint8]]) -> Answers:
    """Run `model` (uint8 [N, 300, 300, 3] → `Answers`) over all images, a few at a time."""
    found = [model(np.stack(pixels[start : start + _CHUNK])) for start in range(0, len(pixels), _CHUNK)]
    return {name: np.concatenate([answers[name] for answers in found]) for name in found[0]}


def compare(
    ours: Answers,
    theirs: Answers,
    images: Images,
    thresholds: Mapping[str, float] | None = None,
    abstention: float | None = None,
) -> Parity:
    """Differences of an engine's answers (`ours`) from the reference's.

    Args:
        ours: the engine's `probabilities`, `cam` and `ood`.
        theirs: the reference's.
        images: what both were asked about.
        thresholds: of P(melanoma), by operating point; needs `images.truth`.
        abstention: the card's threshold on `ood`.
    """
    difference = np.abs(ours["probabilities"] - theirs["probabilities"])
    scores, expected = ours["probabilities"][:, MELANOMA], theirs["probabilities"][:, MELANOMA]
    labelled: dict[str, Any] = {}
    if images.truth is not None and images.truth.any() and not images.truth.all():
        truth = images.truth
        auc = float(roc_auc_score(truth, scores))
        labelled = {
            "auc": auc,
            "auc_change": auc - float(roc_auc_score(truth, expected)),
            "sensitivity_change": {
                name: float((scores[truth] >= at).mean() - (expected[truth] >= at).mean())
                for name, at in (thresholds or {}).items()
            },
            "specificity_change": {
                name: float((scores[~truth] < at).mean() - (expected[~truth] < at).mean())
                for name, at in (thresholds or {}).items()
            },
        }
    if abstention is not None:
        labelled["abstention_change"] = float(((ours["ood"] > abstention) != (theirs["ood"] > abstention)).mean())
    return Parity(
        images=len(difference),
        source=images.source,
        largest=float(difference.max()),
        mean=float(difference.mean()),
        largest_cam=float(np.abs(ours["cam"] - theirs["cam"]).max()),
        rank_agreement=float(spearmanr(scores, expected).statistic) if len(scores) > 2 else None,
        **labelled,
    )


def cam_limit(answers: Answers) -> float:
    """Where the pages' fixed colour scale ends: the 99th percentile of the map's positive values, in logits."""
    return float(f"{np.percentile(np.maximum(answers['cam'], 0), 99):.2g}")


def require_close(parity: Parity) -> None:
    """The gate for FP32 and FP16.

    Raises:
        StartupError: a probability differs by more than the gate allows.
    """
    if not parity.largest <= LARGEST_DIFFERENCE:
        raise StartupError(
            f"The exported file differs from the trained network by up to {parity.largest:.4f} on {parity.images} images "
            f"(allowed: {LARGEST_DIFFERENCE}); the repository was left as it was."
        )


def headroom(parity: Parity) -> float:
    """The gate for INT8: 1 where nothing is lost, 0 where all that is allowed is lost, negative beyond.

    Raises:
        ValueError: the images had no labels.
    """
    if parity.auc_change is None or not parity.sensitivity_change:
        raise ValueError("INT8 is judged on labelled images")
    lost = [
        -parity.auc_change / AUC_LOSS,
        *(-change / SENSITIVITY_LOSS for change in parity.sensitivity_change.values()),
    ]
    return 1.0 - max(0.0, *lost)
