"""What an export makes of a repository's ONNX file for one target, behind the parity gate, and notes in the card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dermserve import engine
from dermserve.errors import StartupError
from dermserve.model_card import INT8_PATH, ONNX_PATH, EngineRecord, ModelCard, Parity, sha256
from export import parity
from export.engine import Precision, Target
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
        found = as_served(path, onnx, data, expected, card)
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


def as_served(
    int8: Path, onnx: Path, data: Data, expected: Mapping[str, Answers], card: ModelCard
) -> dict[str, Parity]:
    """Parity of an INT8 file by data set, run by the engine that will serve it.

    OpenVINO fuses a network otherwise when it knows the batch, and INT8 then rounds otherwise: by up to 0.013.
    """
    served = engine.Engine(int8, engine.INT8, threads=os.cpu_count() or 1)
    novelty = engine.Novelty(onnx) if card.ood.measured else None
    thresholds = {name: point.threshold for name, point in card.operating_points.items()}
    abstention = card.ood.thresholds.get("ood") if card.ood.measured else None

    def answers(pixels: parity.Pixels) -> Answers:
        found = served.infer(pixels)
        distance = novelty(pixels, found["embedding"]) if novelty else np.zeros((len(pixels), 1), np.float32)
        return {**found, engine.NOVELTY: distance}

    return {
        name: parity.compare(parity.answer(answers, images.pixels), expected[name], images, thresholds, abstention)
        for name, images in data.sets.items()
    }


def tensorrt(  # noqa: PLR0917
    repository: Path, target: Target, precision: Precision, images: Images, cache: Path, say: Say
) -> EngineRecord:
    """Build an engine beside the ONNX file; FP16 only where its rounding passes the gate, else FP32.

    No processor here runs the engine, so the gate judges an emulation of its rounding on `images`.

    Raises:
        StartupError: a library or GPU is missing, the file is damaged or does not convert, or there is no room.
    """
    from export.engine import build

    card, onnx, parities, refused = ModelCard.read(repository), repository / ONNX_PATH, {}, ""
    if precision == "FP16":
        found = rounding(onnx, card.weights_sha256, images, say)
        parities[f"{images.source}, FP16 emulated"] = found
        if found.largest > parity.LARGEST_DIFFERENCE:
            refused = f"FP16 moves a probability by {found.largest:.4f} (allowed: {parity.LARGEST_DIFFERENCE})"
            say(f"{target}: FP32, because {refused}")
            precision = "FP32"
    name = "model.plan" if target == "tensorrt" else "model.rtx.engine"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        built = build(
            onnx, target, onnx.with_name(name),
            precision=precision, sha256=card.weights_sha256, cache=cache, progress=progress,
        )  # fmt: skip
    size = built.path.stat().st_size / 1e6
    say(
        f"{target}: {built.path} ({built.precision}, {size:.1f} MB, {built.library}, compute capability "
        f"{built.compute_capability}{', out of the cache' if built.reused else ''})"
    )
    say(built.read_back)
    record = EngineRecord(
        precision=built.precision,
        sha256=built.sha256,
        parity={} if refused else parities,
        made_with=f"{built.library}, compute capability {built.compute_capability}",
        refused=refused,
        tried=parities if refused else {},
    )
    return _noted(repository, target, record)


def tensorrt_recipe(repository: Path, folder: Path, images: Images, say: Say) -> None:
    """Write what a serving container needs to build the FP16 engine itself; see `export.recipe`."""
    from export.recipe import recipe

    card, onnx = ModelCard.read(repository), repository / ONNX_PATH
    rounding(onnx, card.weights_sha256, images, say)
    pixels = np.stack(images.pixels)
    expected = parity.answer(parity.reference(onnx), images.pixels)["probabilities"]
    made = recipe(onnx, folder, pixels, expected, limit=parity.LARGEST_DIFFERENCE, sha256=card.weights_sha256)
    say(f"In the serving container: sh {made.script.name} /models/classifier/1\nor by hand: {made.command}")


def rounding(onnx: Path, sha256: str, images: Images, say: Say) -> Parity:
    """What FP16 does to the answers on `images`, emulated."""
    import openvino

    from export import graph, half

    say(f"Emulating FP16 on {len(images.pixels)} images ({images.source}) …")
    emulated = openvino.Core().read_model(half.emulate(graph.read(onnx, sha256)).SerializeToString())
    theirs = parity.answer(parity.reference(onnx), images.pixels)
    found = parity.compare(parity.answer(parity.reference(emulated), images.pixels), theirs, images)
    say(f"largest |Δp| {found.largest:.4f}, mean {found.mean:.5f}, rank agreement {found.rank_agreement or 1:.5f}")
    return found


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
