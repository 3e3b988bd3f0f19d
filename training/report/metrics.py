"""Figures of merit for melanoma against the rest, and their bootstrap by group, computed for many resamples at once.

A figure's value comes from scikit-learn (partial AUC: from `isic-challenge-scoring`) where these have it. Its interval
comes from the same figure as a function of weights: a resample gives each group, and so each image, a count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from dermserve.model_card import Estimate

Truth = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]
Values = NDArray[np.float64]

BINS: Final = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""
PARTIAL_FROM: Final = 0.8
"""The partial AUC counts what lies above this sensitivity."""
_CELLS: Final = 4_000_000  # weights held at once, so that large sets take time and not memory
_TINY: Final = 1e-9


@dataclass(frozen=True)
class Ranked:
    """Weighted images by falling score: `scores` [K], distinct; weights of positives and negatives there, [B, K]."""

    scores: Values
    positives: Values
    negatives: Values

    @cached_property
    def true_positives(self) -> Values:
        """Weight of the positives with at least this score, [B, K]."""
        return np.cumsum(self.positives, axis=1)

    @cached_property
    def false_positives(self) -> Values:
        """Weight of the negatives with at least this score, [B, K]."""
        return np.cumsum(self.negatives, axis=1)

    @property
    def total_positives(self) -> Values:
        return self.true_positives[:, -1]

    @property
    def total_negatives(self) -> Values:
        return self.false_positives[:, -1]

    def first(self, reached: NDArray[np.bool_], of: Values) -> Values:
        """`of` [B, K] at the first score where `reached` [B, K]; each row reaches it somewhere."""
        values: Values = np.take_along_axis(of, reached.argmax(axis=1)[:, None], axis=1)[:, 0]
        return values


def ranked(truth: Truth, scores: Scores, weights: Values | None = None) -> Ranked:
    """Images by falling score, ties joined. `weights` float [B, N]; without, all images count once (B = 1)."""
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order].astype(np.float64), truth[order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    drawn = np.ones((1, len(order))) if weights is None else weights[:, order]
    return Ranked(
        falling[starts],
        np.add.reduceat(drawn * positive, starts, axis=1),
        np.add.reduceat(drawn * ~positive, starts, axis=1),
    )


def _roc_auc(images: Ranked) -> Values:
    values: Values = _area(images).sum(axis=1) / (images.total_positives * images.total_negatives)
    return values


def _average_precision(images: Ranked) -> Values:
    predicted = np.maximum(images.true_positives + images.false_positives, _TINY)
    precision = images.true_positives / predicted
    values: Values = (images.positives * precision).sum(axis=1) / images.total_positives
    return values


def _specificity_at_sensitivity(images: Ranked, wanted: float = 0.95) -> Values:
    reached = images.true_positives >= wanted * images.total_positives[:, None] - _TINY
    return 1 - images.first(reached, images.false_positives) / images.total_negatives


def _sensitivity_at_specificity(images: Ranked, wanted: float = 0.95) -> Values:
    allowed = images.false_positives <= (1 - wanted) * images.total_negatives[:, None] + _TINY
    best = np.where(allowed, images.true_positives, 0).max(axis=1)
    values: Values = best / images.total_positives
    return values


def _partial_auc(images: Ranked, wanted: float = PARTIAL_FROM) -> Values:
    level = wanted * images.total_positives[:, None]
    reached = images.true_positives >= level - _TINY
    area = _area(images)
    after = images.first(reached, area.sum(axis=1, keepdims=True) - np.cumsum(area, axis=1))
    # The step that crosses the level counts from the crossing on, by linear interpolation.
    above = np.clip(images.true_positives - level, 0, None)
    part = np.divide(above, images.positives, out=np.zeros_like(above), where=images.positives > 0)
    within = images.first(reached, images.negatives * part * (images.true_positives - above / 2))
    return (after + within) / (images.total_positives * images.total_negatives)


def _area(images: Ranked) -> Values:
    return images.negatives * (images.true_positives - images.positives / 2)


def _calibration_error(images: Ranked) -> Values:
    """Bins of equal mass. Images of the same score share the bin of their middle, so the files' order has no say."""
    mass = images.positives + images.negatives
    middle = (np.cumsum(mass, axis=1) - mass / 2) / mass.sum(axis=1, keepdims=True)
    return _binned_gap(images, np.minimum((middle * BINS).astype(np.int64), BINS - 1))


def _calibration_error_equal_width(images: Ranked) -> Values:
    width = np.minimum((images.scores * BINS).astype(np.int64), BINS - 1)
    return _binned_gap(images, np.broadcast_to(width, images.positives.shape))


def _binned_gap(images: Ranked, bins: NDArray[np.int64]) -> Values:
    mass = images.positives + images.negatives
    gap = images.positives - mass * images.scores
    rows = len(mass)
    cell = (np.arange(rows)[:, None] * BINS + bins).ravel()
    gaps = np.abs(np.bincount(cell, gap.ravel(), rows * BINS)).reshape(rows, BINS)
    values: Values = gaps.sum(axis=1) / mass.sum(axis=1)
    return values


def _brier(images: Ranked) -> Values:
    loss = images.positives * (1 - images.scores) ** 2 + images.negatives * images.scores**2
    values: Values = loss.sum(axis=1) / (images.positives + images.negatives).sum(axis=1)
    return values


def partial_auc(truth: Truth, scores: Scores) -> float:
    """Area under the part of the ROC curve above 80 % sensitivity, down to the axis: 0.18 by chance, 1 at best.

    `isic_challenge_scoring`'s `auc_above_sensitivity`, the ISIC challenges' own code; ImportError without it.
    """
    import pandas as pd
    from isic_challenge_scoring.metrics import auc_above_sensitivity

    columns = pd.Series(truth.astype(float)), pd.Series(scores), pd.Series(np.ones(len(truth)))
    return float(auc_above_sensitivity(*columns, PARTIAL_FROM))


@dataclass(frozen=True)
class Figure:
    """A figure's printed title, its form for resamples, and a library's form for the images as they are.

    `biased`: chance alone makes it larger, and in resamples once more; their interval is moved back onto the value.
    """

    title: str
    resampled: Callable[[Ranked], Values]
    library: Callable[[Truth, Scores], float] | None = None
    biased: bool = False

    def value(self, truth: Truth, scores: Scores) -> float:
        """The figure of these images; NaN where there are no positives or no negatives."""
        if truth.all() or not truth.any():
            return math.nan
        if self.library is not None:
            return float(self.library(truth, scores))
        return float(self.resampled(ranked(truth, scores))[0])


FIGURES: Final = {
    "roc_auc": Figure("ROC-AUC", _roc_auc, roc_auc_score),
    "average_precision": Figure("average precision", _average_precision, average_precision_score),
    "specificity_at_95_sensitivity": Figure("specificity at 95 % sensitivity", _specificity_at_sensitivity),
    "sensitivity_at_95_specificity": Figure("sensitivity at 95 % specificity", _sensitivity_at_specificity),
    "partial_auc_above_80_sensitivity": Figure("partial AUC above 80 % sensitivity", _partial_auc, partial_auc),
    "calibration_error": Figure("expected calibration error, 15 bins of equal mass", _calibration_error, biased=True),
    "calibration_error_equal_width": Figure(
        "the same, 15 bins of equal width", _calibration_error_equal_width, biased=True
    ),
    "brier_score": Figure("Brier score", _brier, brier_score_loss),
}


def figures() -> dict[str, Figure]:
    """All of `FIGURES` that this installation can compute: the partial AUC needs `isic-challenge-scoring`."""
    whole = find_spec("isic_challenge_scoring") is not None
    return {name: figure for name, figure in FIGURES.items() if whole or name != "partial_auc_above_80_sensitivity"}


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of images by group: `group` int [N], and how often each resample draws each group, uint16 [B, G].

    Each resample draws as many groups as there are, with all their images: images of one lesion or patient resemble
    each other, and drawing them singly would make intervals too narrow.
    """

    group: NDArray[np.int64]
    draws: NDArray[np.uint16]

    @classmethod
    def of(cls, groups: Sequence[str], count: int, seed: int = 0) -> Bootstrap:
        """`count` resamples; the same groups and seed give the same, whatever the images' order."""
        names, group = np.unique(np.asarray(groups), return_inverse=True)
        rng, size = np.random.default_rng(seed), len(names)
        draws = np.empty((count, size), np.uint16)
        for row in draws:
            row[:] = np.bincount(rng.integers(size, size=size), minlength=size)
        return cls(group, draws)

    def weights(self) -> Iterator[Values]:
        """How often each image is drawn, float64 [b, N], some resamples at a time."""
        step = max(1, _CELLS // len(self.group))
        for start in range(0, len(self.draws), step):
            yield self.draws[start : start + step, self.group].astype(np.float64)

    def ratios(self, hits: NDArray[Any], among: NDArray[Any]) -> Values:
        """Σ `hits` / Σ `among` (both [N]) of each resample, float64 [B]; NaN where nothing is among."""
        size = self.draws.shape[1]
        sums = np.stack([np.bincount(self.group, values.astype(np.float64), size) for values in (hits, among)], axis=1)
        drawn = np.concatenate([part @ sums for part in np.array_split(self.draws, 1 + self.draws.size // _CELLS)])
        return np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), math.nan), where=drawn[:, 1] > 0)


def estimate(value: float, resampled: Values, images: int, positives: int) -> Estimate:
    """A value with the 95 % percentile interval of its resamples.

    Resamples on which the figure is not defined are skipped; where none is left, nothing is known: 0 to 1.
    """
    finite = resampled[np.isfinite(resampled)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (0.0, 1.0)
    return Estimate(value=value, low=float(low), high=float(high), images=images, positives=positives)


def proportion(hits: NDArray[np.bool_], among: NDArray[np.bool_], drawn: Bootstrap, positives: int) -> Estimate:
    """The share of `hits` in `among` (both [N]), with the wider bounds of two 95 % intervals.

    Where all or none are hits, every resample says the same and its interval has no width, whatever the number of
    images. Wilson's score interval has one; its n are the distinct groups in `among`, since images of one lesion or
    patient resemble each other. NaN, from 0 to 1, where nothing is among.
    """
    count, hit = int(among.sum()), hits & among
    value = float(hit.sum() / count) if count else math.nan
    resampled = estimate(value, drawn.ratios(hit, among), len(among), positives)
    if not count:
        return resampled
    low, high = wilson(value, len(np.unique(drawn.group[among])))
    return resampled.model_copy(update={"low": min(resampled.low, low), "high": max(resampled.high, high)})


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `count` independent cases (Wilson 1927), within 0…1."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def measure(
    truth: Truth, scores: Scores, groups: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """All of `figures()` with intervals. `truth`: bool [N], `scores`: P(melanoma) [N], `groups`: lesion or patient [N]."""
    known = figures()
    found: dict[str, list[Values]] = {name: [] for name in known}
    for weights in Bootstrap.of(groups, bootstrap, seed).weights():
        images = ranked(truth, scores, weights)
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without positives or negatives gives NaN
            for name, figure in known.items():
                found[name].append(figure.resampled(images))
    estimates = {}
    for name, figure in known.items():
        value, resampled = figure.value(truth, scores), np.concatenate(found[name])
        if figure.biased:
            resampled = np.clip(resampled - np.nanmean(resampled) + value, 0, None)
        estimates[name] = estimate(value, resampled, len(truth), int(truth.sum()))
    return estimates
