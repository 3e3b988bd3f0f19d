"""Everything that is measured on one set of scored images; finishing, `dermserve evaluate` and the card use it alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dermserve.labels import LEAVES
from dermserve.model_card import Estimate, Evaluation, LeafResults, OperatingPoint
from training.evaluate import at_thresholds
from training.report import subgroups
from training.report.metrics import FIGURES, Bootstrap, estimate, figures, measure, proportion
from training.report.subgroups import Subject

VALIDATION: Final = "validation: not trained on, but checkpoint, calibration and thresholds were chosen on these images"
TEST: Final = "test: none of these image ids was trained on, and nothing was chosen on these images"
UNKNOWN: Final = "unknown: the card keeps no list of the images that these weights were trained on"
NO_PARTIAL_AUC: Final = "The partial AUC is not measured: isic-challenge-scoring is not installed (extra `training`)."


@dataclass(frozen=True)
class Scored:
    """Scored images with known truth, N of each.

    Args:
        name: of the data set, a key of the card's `metrics`.
        role: what the images were to the weights, in words.
        names: image ids.
        truth: melanoma or not, bool.
        scores: P(melanoma), float64.
        groups: lesion or patient.
        leaves: index of the true leaf and of the most probable one, or None where leaves are not known.
        sources: collection of each image, or empty.
    """

    name: str
    role: str
    names: Sequence[str]
    truth: NDArray[np.bool_]
    scores: NDArray[np.float64]
    groups: Sequence[str]
    leaves: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    sources: Sequence[str] = ()

    def part(self, name: str, rows: NDArray[np.int64]) -> Scored:
        """Some of the images under another name, without their sources."""
        return Scored(
            name,
            self.role,
            [self.names[row] for row in rows],
            self.truth[rows],
            self.scores[rows],
            [self.groups[row] for row in rows],
            None if self.leaves is None else (self.leaves[0][rows], self.leaves[1][rows]),
        )


@dataclass(frozen=True)
class Found:
    """The figures of one data set."""

    metrics: dict[str, Estimate]
    evaluation: Evaluation

    @property
    def points(self) -> dict[str, OperatingPoint]:
        return self.evaluation.operating_points


@dataclass(frozen=True)
class Examiner:
    """How to measure: thresholds by operating point, what is known of the people, resamples behind each interval."""

    thresholds: Mapping[str, float]
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    bootstrap: int = 1000

    def examine(self, images: Scored) -> dict[str, Found]:
        """Figures of a data set under its name, and of each of its sources as `name/source`."""
        found = {images.name: self._examine(images)}
        sources = np.array(images.sources)
        left_out = []
        for source in sorted(set(images.sources)):
            part = images.part(f"{images.name}/{source}", np.flatnonzero(sources == source))
            if subgroups.too_small(part.truth):
                left_out.append(_too_small("source", source, part.truth))
            else:
                found[part.name] = self._examine(part, divide=False)
        found[images.name].evaluation.not_measured.extend(left_out)
        return found

    def _examine(self, images: Scored, *, divide: bool = True) -> Found:
        parts, left_out = self._subgroups(images) if divide else ({}, [])
        if len(figures()) < len(FIGURES):
            left_out.append(NO_PARTIAL_AUC)
        evaluation = Evaluation(
            role=images.role,
            operating_points=self._points(images),
            leaves=None if images.leaves is None else leaf_results(*images.leaves, images.groups, self.bootstrap),
            subgroups=parts,
            not_measured=left_out,
        )
        return Found(self._metrics(images), evaluation)

    def _metrics(self, images: Scored) -> dict[str, Estimate]:
        return measure(images.truth, images.scores, images.groups, bootstrap=self.bootstrap)

    def _points(self, images: Scored) -> dict[str, OperatingPoint]:
        return at_thresholds(
            images.truth,
            images.scores,
            images.groups,
            dict(self.thresholds),
            images.name,
            bootstrap=self.bootstrap,
        )

    def _subgroups(self, images: Scored) -> tuple[dict[str, dict[str, dict[str, Estimate]]], list[str]]:
        found: dict[str, dict[str, dict[str, Estimate]]] = {}
        left_out = []
        for kind, members in subgroups.members(images.names, self.subjects).items():
            for name, rows in members.items():
                part = images.part(name, rows)
                if subgroups.too_small(part.truth):
                    left_out.append(_too_small(kind, name, part.truth))
                    continue
                reached = {
                    f"{point}: {side}": getattr(figures, side)
                    for point, figures in self._points(part).items()
                    for side in ("sensitivity", "specificity")
                }
                found.setdefault(kind, {})[name] = self._metrics(part) | reached
        return found, left_out


def leaf_results(
    targets: NDArray[np.int64], answers: NDArray[np.int64], groups: Sequence[str], bootstrap: int
) -> LeafResults:
    """Confusion, recall of each leaf that has images, and their mean (balanced accuracy), with intervals."""
    confusion = np.zeros((len(LEAVES), len(LEAVES)), np.int64)
    np.add.at(confusion, (targets, answers), 1)
    drawn = Bootstrap.of(groups, bootstrap)
    recall, resampled = {}, []
    for index in np.flatnonzero(confusion.sum(axis=1)):
        among, hit = targets == index, answers == index
        recall[LEAVES[index]] = proportion(hit, among, drawn, int(among.sum()))
        resampled.append(drawn.ratios(hit & among, among))
    # A resample that drew none of a rare leaf's groups has no balanced accuracy over the same leaves; it is skipped.
    mean = np.mean(resampled, axis=0)
    value = float(np.mean([figure.value for figure in recall.values()]))
    return LeafResults(
        confusion=confusion.tolist(),
        balanced_accuracy=estimate(value, mean, len(targets), len(targets)),
        recall=recall,
    )


def _too_small(kind: str, name: str, truth: NDArray[np.bool_]) -> str:
    positives = int(truth.sum())
    return (
        f"{kind} {name}: {positives} melanomas and {len(truth) - positives} others; "
        f"a subgroup needs {subgroups.MINIMUM} of each."
    )
