"""What `dermserve evaluate` measures: a table of predictions against a table of labels. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dermserve.errors import StartupError
from dermserve.labels import CSV_HEADER
from dermserve.model_card import Estimate, OperatingPoint
from training.evaluate import at_threshold, measure, resamples
from training.truth import Labels, read_labels, read_rows, stem

_SHOWN = 5
_POINTS = TypeAdapter(dict[str, OperatingPoint])


@dataclass(frozen=True)
class Joined:
    """Predictions with their labels: `truth` bool [N], `scores` P(melanoma) float64 [N], `groups` [N].

    `left_out` counts images that only one of both files has.
    """

    truth: NDArray[np.bool_]
    scores: NDArray[np.float64]
    groups: list[str]
    left_out: int = 0


def join(predictions: Path, labels: Path, *, partial: bool = False) -> Joined:
    """Match predictions and labels by file stem.

    Args:
        predictions: CSV with exactly the columns of `labels.CSV_HEADER`.
        labels: see `truth.read_labels`.
        partial: score the images that are in both, instead of refusing where one file has more.

    Raises:
        StartupError: a header is wrong, an image stands twice, an image lacks its counterpart, a probability is not in
            0…1, or the labels hold no melanoma or nothing else.
    """
    scores = read_predictions(predictions)
    truth: Labels = read_labels(labels)
    unlabelled = [name for name in scores if name not in truth.melanoma]
    unscored = [name for name in truth.melanoma if name not in scores]
    if not partial:
        _refuse(unlabelled, f"{predictions} scores", f"have no label in {labels}")
        _refuse(unscored, f"{labels} labels", f"have no prediction in {predictions}")
    names = [name for name in truth.melanoma if name in scores]
    if not names:
        raise StartupError(f"{predictions} and {labels} have no image in common.")
    joined = Joined(
        np.array([truth.melanoma[name] for name in names]),
        np.array([scores[name] for name in names]),
        [truth.groups[name] for name in names],
        len(unlabelled) + len(unscored),
    )
    if joined.truth.all() or not joined.truth.any():
        raise StartupError(f"{labels} needs both melanomas and other images for these figures to have a meaning.")
    return joined


def read_predictions(path: Path) -> dict[str, float]:
    """P(melanoma) by image stem, in the file's order; see `join` for what is refused."""
    rows = read_rows(path)
    if tuple(rows[0]) != CSV_HEADER:
        raise StartupError(f"{path} has the header {','.join(rows[0])}; it must be {','.join(CSV_HEADER)}.")
    scores: dict[str, float] = {}
    for row in rows:
        name = stem(row["filename"])
        if name in scores:
            raise StartupError(f"{path} scores {name} more than once.")
        try:
            scores[name] = float(row["Melanoma"])
        except (TypeError, ValueError):
            scores[name] = -1.0
        if not 0 <= scores[name] <= 1:
            raise StartupError(f"{path}: the melanoma probability of {name} is {row['Melanoma']!r}, not in 0…1.")
    return scores


@dataclass(frozen=True)
class Report:
    """The figures: `metrics` by name, and sensitivity and specificity by operating point's name."""

    metrics: dict[str, Estimate]
    points: dict[str, OperatingPoint]
    left_out: int

    def to_json(self) -> str:
        """The report as indented JSON."""
        content = {
            "metrics": {name: figure.model_dump() for name, figure in self.metrics.items()},
            "operating_points": {name: point.model_dump() for name, point in self.points.items()},
            "left_out": self.left_out,
        }
        return json.dumps(content, indent=2) + "\n"


def report(joined: Joined, points: dict[str, OperatingPoint], data: str, *, bootstrap: int = 1000) -> Report:
    """Metrics of the joined images, and what the card's thresholds reach on them. `data` names the images."""
    samples = resamples(joined.groups, bootstrap)
    reached = {
        name: OperatingPoint(
            threshold=point.threshold,
            data=data,
            **at_threshold(joined.truth, joined.scores, point.threshold, samples),
        )
        for name, point in points.items()
    }
    return Report(measure(joined.truth, joined.scores, joined.groups, bootstrap=bootstrap), reached, joined.left_out)


def card_points(path: Path) -> dict[str, OperatingPoint]:
    """The operating points of a model card, also of the `card.json` of a run that is not exported yet.

    Raises:
        StartupError: the file is missing or is no model card.
    """
    try:
        content = json.loads(path.read_bytes())
        return _POINTS.validate_python(content["operating_points"])
    except FileNotFoundError as error:
        raise StartupError(f"There is no model card at {path}.") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise StartupError(f"{path} is not a model card with operating points.") from error


def _refuse(names: list[str], who: str, what: str) -> None:
    if names:
        few = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise StartupError(f"{who} {len(names)} images that {what}: {few}. Pass --partial to leave them out.")
