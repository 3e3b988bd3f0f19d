"""What drawn artefacts do to scores, with and without augmentation and with and without removal, on the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from dermserve import artifacts as removal
from dermserve import image
from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import SeenImages
from training import datasets, splits
from training.artifacts import KINDS, draw
from training.config import Config
from training.evaluate import resamples, softmax
from training.finish import CARD, FINAL
from training.inference import predict
from training.model import load_checkpoint
from training.pixels import Pixels, ShowProgress, silent
from training.scores import card_seen

CLEAN: Final = "none"
POINT: Final = "sensitivity_95"
_MELANOMA: Final = LEAVES.index("MEL")


@dataclass(frozen=True)
class Weights:
    """A finished run: its network, temperature, the threshold of `POINT` and the images that it has seen."""

    name: str
    network: nn.Module
    temperature: float
    threshold: float
    seen: SeenImages
    artifacts: float
    """Chance of a drawn artefact on a training image."""


@dataclass(frozen=True)
class Row:
    """One arm on images with one kind of artefact; against the same arm on the same images without.

    `drift` is |Δ P(melanoma)|: median and 95th percentile. `changed` is the share of images on the other side of the
    arm's referral threshold. `auc_change` has a 95 % interval (bootstrap over groups, paired).
    """

    weights: str
    removed: bool
    kind: str
    auc: float
    auc_change: float
    auc_change_low: float
    auc_change_high: float
    drift_median: float
    drift_95: float
    changed: float


@dataclass(frozen=True)
class Validation:
    """The images that are drawn on: files, truth (melanoma) and groups."""

    paths: list[Path]
    truth: NDArray[np.bool_]
    groups: list[str]


def load(folder: Path) -> Weights:
    """A finished run folder.

    Raises:
        StartupError: the folder holds no finished run, or one that kept no list of its images.
    """
    network, metadata = load_checkpoint(folder / FINAL)
    try:
        threshold = json.loads((folder / CARD).read_text())["operating_points"][POINT]["threshold"]
    except (OSError, KeyError, ValueError) as error:
        raise StartupError(f"{folder} holds no {CARD} with the operating point {POINT}.") from error
    seen = card_seen(folder / CARD)
    if seen is None:
        raise StartupError(f"{folder / CARD} keeps no list of the images that these weights were trained on (`seen`).")
    # Not validated: an older run's configuration lacks keys, and from before `artifacts` none were drawn.
    config = Config.model_construct(**({"artifacts": 0.0} | metadata["config"]))
    return Weights(
        folder.resolve().name, network, float(metadata["temperature"]), threshold, seen, config.drawn_artifacts
    )


def validation(data: Path, runs: Sequence[Weights], count: int, seed: int) -> Validation:
    """`count` images below `data`, picked by `seed` from those that are validation images of every run.

    Raises:
        StartupError: `data` cannot be read, or holds no such image.
    """
    found = datasets.read(data)
    names = {record.name for record in found.records}
    for run in runs:
        names &= set(run.seen.fixed_on(names)) - set(run.seen.trained_on(names))
    records = [record for record in found.records if record.name in names]
    if not records:
        raise StartupError(
            f"{data} holds no validation image that {' and '.join(run.name for run in runs)} have in common. Give the "
            "data that they were trained on, and runs with the same division."
        )
    given = data / "splits.csv"
    groups = splits.split(found, given=given if given.exists() else None).groups
    order = np.random.default_rng(seed).permutation(len(records))[:count]
    records = [records[i] for i in sorted(order)]
    return Validation(
        [record.path for record in records],
        np.array([record.leaf == "MEL" for record in records]),
        [groups[record.name] for record in records],
    )


def prepare(found: Validation, kind: str, seed: int) -> Pixels:
    """The images with an artefact drawn on the decoded file, then prepared as the server prepares: uint8 [N, 300, 300, 3].

    Dark corners so meet the frame crop, as a real frame would.
    """
    out = np.empty((len(found.paths), image.SIDE, image.SIDE, 3), np.uint8)
    for row, path in enumerate(found.paths):
        pixels = image.decode(path.read_bytes())
        if kind != CLEAN:
            pixels = draw(kind, pixels, np.random.default_rng((seed, row, list(KINDS).index(kind))))
        out[row] = image.fit(pixels).pixels
    return out


def measure(
    runs: Sequence[Weights], found: Validation, *, seed: int = 0, bootstrap: int = 1000, show: ShowProgress = silent
) -> list[Row]:
    """Every run with and without removal on every kind of artefact."""
    if found.truth.all() or not found.truth.any():
        raise StartupError("The ablation needs images with and without melanoma; use more images.")
    samples = resamples(found.groups, bootstrap)
    clean: dict[tuple[int, bool], NDArray[np.float64]] = {}
    rows = []
    kinds = (CLEAN, *KINDS)
    for kind in show(kinds, "Kinds of artefact", len(kinds)):
        drawn = prepare(found, kind, seed)
        for removed in (False, True):
            pixels = np.stack([removal.remove(one) for one in drawn]) if removed else drawn
            for number, run in enumerate(runs):
                scores = _scores(run, pixels)
                before = clean.setdefault((number, removed), scores)
                rows.append(_row(run, removed, kind, truth=found.truth, before=before, after=scores, samples=samples))
    return rows


def to_json(rows: Sequence[Row]) -> str:
    """The rows as indented JSON."""
    return json.dumps([asdict(row) for row in rows], indent=2) + "\n"


def _scores(run: Weights, pixels: Pixels) -> NDArray[np.float64]:
    logits = predict(run.network, pixels, np.arange(len(pixels)), image.SIDE, torch.device("cpu"))
    return softmax(logits, run.temperature)[:, _MELANOMA]


def _row(
    run: Weights,
    removed: bool,
    kind: str,
    *,
    truth: NDArray[np.bool_],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    samples: list[NDArray[np.int64]],
) -> Row:
    changes = [
        roc_auc_score(truth[some], after[some]) - roc_auc_score(truth[some], before[some])
        for some in samples
        if truth[some].any() and not truth[some].all()
    ]
    low, high = np.percentile(changes, [2.5, 97.5])
    drift = np.abs(after - before)
    auc = float(roc_auc_score(truth, after))
    return Row(
        weights=run.name,
        removed=removed,
        kind=kind,
        auc=auc,
        auc_change=auc - float(roc_auc_score(truth, before)),
        auc_change_low=float(low),
        auc_change_high=float(high),
        drift_median=float(np.median(drift)),
        drift_95=float(np.percentile(drift, 95)),
        changed=float(((before >= run.threshold) != (after >= run.threshold)).mean()),
    )
