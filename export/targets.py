"""What an export makes of a repository's ONNX file for one target, behind the parity gate, and notes in the card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from dermserve.errors import StartupError
from dermserve.model_card import INT8_PATH, ONNX_PATH, EngineRecord, ModelCard, Parity, sha256
from export import parity
from export.parity import Answers, Images
from export.sets import Data

Say = Callable[[str], None]
CALIBRATION: Final = 100
"""Images whose ranges are measured; more widened the ranges and made the result worse."""


def openvino_fp32(repository: Path, why: str, say: Say) -> EngineRecord:
    """Serve the ONNX file itself on CPUs; an INT8 model of earlier weights goes away."""
    _remove_int8(repository)
    card = ModelCard.read(repository)
    record = EngineRecord(precision="FP32", sha256=card.weights_sha256, refused=why)
    say(f"openvino: FP32, the ONNX file itself{f' ({why})' if why else ''}")
    return _noted(repository, "openvino", record)


def openvino_int8(repository: Path, data: Data, say: Say) -> EngineRecord:
    """Quantise, judge, and put the INT8 model beside the ONNX file; where the gate refuses it, FP32 stays.

    Raises:
        StartupError: the extra `export` is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise StartupError("INT8 needs the extra 'export' (uv pip install -e '.[export]').") from error
    import openvino

    card = ModelCard.read(repository)
    onnx = repository / ONNX_PATH
    validation = next(iter(data.sets.values()))
    truth = _truth(validation)
    thresholds = {name: point.threshold for name, point in card.operating_points.items()}
    abstention = card.ood.thresholds.get("ood") if card.ood.measured else None
    network = parity.reference(onnx)
    say(f"FP32 answers on {sum(len(images.pixels) for images in data.sets.values()):,} images …")
    expected = {name: parity.answer(network, images.pixels) for name, images in data.sets.items()}

    def judge(answers: Answers, chosen: Sequence[int]) -> tuple[float, list[float]]:
        rows = list(chosen)
        theirs = {name: values[rows] for name, values in expected[validation.source].items()}
        closeness = -np.abs(_logit(answers) - _logit(theirs))
        if len(rows) < len(truth):  # too few images to tell a loss of two thousandths of the ROC-AUC
            return float(closeness.mean()), closeness.tolist()
        return parity.headroom(parity.compare(answers, theirs, validation, thresholds)), closeness.tolist()

    say(f"Quantising with {len(data.calibration)} training images (NNCF {nncf.__version__}) …")
    model = _quantise(onnx, data.calibration, validation.pixels, judge)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".export-") as folder:
        path = Path(folder) / INT8_PATH.name
        openvino.save_model(model, path, compress_to_fp16=False)
        # What is judged is what was written.
        quantised = parity.reference(path)
        found = {
            name: parity.compare(
                parity.answer(quantised, images.pixels), expected[name], images, thresholds, abstention
            )
            for name, images in data.sets.items()
        }
        for one in found.values():
            say(_told(one))
        left = parity.headroom(found[validation.source])
        if left < 0:
            record = openvino_fp32(repository, "INT8 loses more than the gate allows on the validation images", say)
            return _noted(repository, "openvino", record.model_copy(update={"tried": found}))
        record = EngineRecord(
            precision="INT8",
            sha256=sha256(path),
            weights_sha256=sha256(path.with_suffix(".bin")),
            parity=found,
            made_with=f"NNCF {nncf.__version__}, OpenVINO {openvino.__version__}, {len(data.calibration)} training images",
        )
        _remove_int8(repository)
        target = repository / INT8_PATH
        path.with_suffix(".bin").replace(target.with_suffix(".bin"))
        path.replace(target)
    say(f"openvino: INT8 passed the gate, using {1 - left:.0%} of what it may lose")
    return _noted(repository, "openvino", record)


def _quantise(*arguments: Any) -> Any:
    from export.openvino import quantise  # NNCF takes a second to import

    return quantise(*arguments)


def _told(found: Parity) -> str:
    """One line for people."""
    changes = ", ".join(f"{name} {change * 100:+.2f}" for name, change in found.sensitivity_change.items())
    specific = ", ".join(f"{name} {change * 100:+.2f}" for name, change in found.specificity_change.items())
    return (
        f"{found.source} ({found.images:,} images): largest |Δp| {found.largest:.3f}, mean {found.mean:.4f}, rank agreement "
        f"{found.rank_agreement:.4f}, ROC-AUC {found.auc:.4f} ({found.auc_change:+.4f}); sensitivity in points: {changes}; "
        f"specificity: {specific}; other side of abstention: {found.abstention_change or 0:.2%}"
    )


def _logit(answers: Answers) -> Any:
    melanoma = np.clip(answers["probabilities"][:, parity.MELANOMA].astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(melanoma / (1 - melanoma))


def _truth(images: Images) -> Any:
    if images.truth is None:
        raise StartupError("INT8 is judged on labelled images.")
    return np.asarray(images.truth)


def _remove_int8(repository: Path) -> None:
    for path in (repository / INT8_PATH, (repository / INT8_PATH).with_suffix(".bin")):
        path.unlink(missing_ok=True)


def _noted(repository: Path, target: str, record: EngineRecord) -> EngineRecord:
    card = ModelCard.read(repository)
    card.model_copy(update={"engines": {**card.engines, target: record}}).write(repository)
    return record
