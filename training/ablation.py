"""What drawn artefacts do to scores, with and without augmentation and with and without removal, on the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dermserve import artifacts as removal
from dermserve import image
from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import SeenImages
from training import datasets, splits
from training.artifacts import KINDS, draw
from training.config import Config
from training.evaluate import softmax
from training.finish import CARD, FINAL
from training.inference import predict
from training.model import load_checkpoint
from training.pixels import Pixels, ShowProgress, silent
from training.report.metrics import FIGURES, Bootstrap, Values, ranked
from training.scores import card_seen

CLEAN: Final = "none"
DRAWN: Final = "mean of all"
POINT: Final = "sensitivity_95"
_MELANOMA: Final = LEAVES.index("MEL")
_NO_EFFECT: Final = ("bootstrap", "wandb", "wandb_images", "checkpoint_minutes", "threads", "workers")

Aucs = dict[tuple[int, bool, str], Values]
"""ROC-AUC by run, removal and kind: first of the images as they are, then of every resample."""


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
    removes: bool
    """Whether hair was painted over in training, and so is where these weights are served."""
    trained: str = ""
    """How and on which images it was trained, besides drawn artefacts: runs that are equal here can be compared."""
    passes: str = ""
    """The training images, how often they were passed and at which sizes, for people."""


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
class Removal:
    """ROC-AUC of the same images with removal minus without, with its 95 % interval (bootstrap over groups, paired).

    `kind` is `CLEAN`, a kind of artefact, or `DRAWN` for the mean over the kinds of artefact.
    """

    weights: str
    kind: str
    auc_change: float
    auc_change_low: float
    auc_change_high: float


@dataclass(frozen=True)
class Pair:
    """A run trained with drawn artefacts and one without; equal in all else, and each scored as it was trained.

    Drifts are means over the kinds of the median; the change is that of ROC-AUC on clean images, `drawn` minus `plain`.
    """

    drawn: str
    plain: str
    drift_drawn: float
    drift_plain: float
    auc_change: float
    auc_change_low: float
    auc_change_high: float


@dataclass(frozen=True)
class Ablation:
    """Everything that was measured."""

    rows: list[Row]
    removal: list[Removal]
    pairs: list[Pair]


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
        card = json.loads((folder / CARD).read_text())
        threshold = card["operating_points"][POINT]["threshold"]
        images, epochs = card["training"]["images"]["train"], card["training"]["epochs"]
    except (OSError, KeyError, ValueError) as error:
        raise StartupError(f"{folder} holds no {CARD} with the operating point {POINT}.") from error
    seen = card_seen(folder / CARD)
    if seen is None:
        raise StartupError(f"{folder / CARD} keeps no list of the images that these weights were trained on (`seen`).")
    # Not validated: an older run's configuration lacks keys, and from before `artifacts` none were drawn.
    config = Config.model_construct(**({"artifacts": 0.0} | metadata["config"]))
    sizes = ", ".join(str(stage["resolution"]) for stage in metadata["config"]["stages"])
    passes = f"{images:,} images × {epochs:.3g} at {sizes} px"
    return Weights(
        folder.resolve().name,
        network,
        float(metadata["temperature"]),
        threshold,
        seen,
        config.drawn_artifacts,
        config.remove_artifacts,
        _rest(metadata["config"], seen),
        passes,
    )


def _rest(config: dict[str, Any], seen: SeenImages) -> str:
    """What two runs must share for their difference to be that of drawn artefacts."""
    others = {key: value for key, value in config.items() if key not in {"artifacts", *_NO_EFFECT}}
    return json.dumps([others, seen.train], sort_keys=True)


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
) -> Ablation:
    """Every run with and without removal on every kind of artefact."""
    if found.truth.all() or not found.truth.any():
        raise StartupError("The ablation needs images with and without melanoma; use more images.")
    drawn = [np.ones((1, len(found.truth))), *Bootstrap.of(found.groups, bootstrap).weights()]
    weights = np.concatenate(drawn)
    clean: dict[tuple[int, bool], NDArray[np.float64]] = {}
    aucs: Aucs = {}
    rows = []
    kinds = (CLEAN, *KINDS)
    for kind in show(kinds, "Kinds of artefact", len(kinds)):
        images = prepare(found, kind, seed)
        for removed in (False, True):
            pixels = np.stack([removal.remove(one) for one in images]) if removed else images
            for number, run in enumerate(runs):
                scores = _scores(run, pixels)
                before = clean.setdefault((number, removed), scores)
                aucs[number, removed, kind] = _roc_auc(found.truth, scores, weights)
                change = aucs[number, removed, kind] - aucs[number, removed, CLEAN]
                auc = float(aucs[number, removed, kind][0])
                rows.append(Row(run.name, removed, kind, auc, *_interval(change), *_drift(run, before, scores)))
    return Ablation(rows, _removal(runs, aucs), _pairs(runs, rows, aucs))


def to_json(found: Ablation) -> str:
    """`rows`, `removal` and `pairs` as indented JSON."""
    return json.dumps(asdict(found), indent=2) + "\n"


def _removal(runs: Sequence[Weights], aucs: Aucs) -> list[Removal]:
    found = []
    for number, run in enumerate(runs):
        changes = {kind: aucs[number, True, kind] - aucs[number, False, kind] for kind in (CLEAN, *KINDS)}
        changes[DRAWN] = np.mean([changes[kind] for kind in KINDS], axis=0)
        found += [Removal(run.name, kind, *_interval(change)) for kind, change in changes.items()]
    return found


def _pairs(runs: Sequence[Weights], rows: Sequence[Row], aucs: Aucs) -> list[Pair]:
    def drift(run: Weights) -> float:
        mine = [row for row in rows if (row.weights, row.removed) == (run.name, run.removes)]
        return float(np.mean([row.drift_median for row in mine if row.kind != CLEAN]))

    found = []
    for (i, drawn), (j, plain) in product(enumerate(runs), repeat=2):
        if drawn.trained == plain.trained and drawn.artifacts > plain.artifacts == 0:
            change = aucs[i, drawn.removes, CLEAN] - aucs[j, plain.removes, CLEAN]
            found.append(Pair(drawn.name, plain.name, drift(drawn), drift(plain), *_interval(change)))
    return found


def _roc_auc(truth: NDArray[np.bool_], scores: NDArray[np.float64], weights: Values) -> Values:
    """ROC-AUC of each resample: weights float64 [B, N] → [B]; NaN where one has no melanoma or nothing else."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return FIGURES["roc_auc"].resampled(ranked(truth, scores, weights))


def _interval(values: Values) -> tuple[float, float, float]:
    """The first value, and the 95 % percentile interval of the others, the resamples."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def _scores(run: Weights, pixels: Pixels) -> NDArray[np.float64]:
    logits = predict(run.network, pixels, np.arange(len(pixels)), image.SIDE, torch.device("cpu"))
    return softmax(logits, run.temperature)[:, _MELANOMA]


def _drift(run: Weights, before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median and 95th percentile of |Δ P(melanoma)|, and the share of images that cross the threshold."""
    drift = np.abs(after - before)
    changed = ((before >= run.threshold) != (after >= run.threshold)).mean()
    return float(np.median(drift)), float(np.percentile(drift, 95)), float(changed)
