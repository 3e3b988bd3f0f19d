"""Figures of merit for melanoma against the rest, with 95 % intervals; NumPy and scikit-learn only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dermserve.model_card import Estimate, OperatingPoint

Truth = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]
Metric = Callable[[Truth, Scores], float]


def roc_auc(truth: Truth, scores: Scores) -> float:
    """Area under the ROC curve; NaN where there are no positives or no negatives."""
    if truth.all() or not truth.any():
        return math.nan
    return float(roc_auc_score(truth, scores))


def average_precision(truth: Truth, scores: Scores) -> float:
    """Average precision (area under the precision-recall steps); NaN where there are no positives or no negatives."""
    if truth.all() or not truth.any():
        return math.nan
    return float(average_precision_score(truth, scores))


def specificity_at_sensitivity(truth: Truth, scores: Scores, sensitivity: float = 0.95) -> float:
    """The best specificity of any threshold that reaches `sensitivity` (0…1); NaN where one class is missing."""
    if truth.all() or not truth.any():
        return math.nan
    false_positives, true_positives, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(1 - false_positives[true_positives >= sensitivity].min())


def sensitivity(truth: Truth, scores: Scores, threshold: float) -> float:
    """Share of the positives with a score of at least `threshold`; NaN without positives."""
    return float((scores[truth] >= threshold).mean()) if truth.any() else math.nan


def specificity(truth: Truth, scores: Scores, threshold: float) -> float:
    """Share of the negatives with a score below `threshold`; NaN without negatives."""
    return float((scores[~truth] < threshold).mean()) if not truth.all() else math.nan


METRICS: dict[str, Metric] = {
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "specificity_at_95_sensitivity": specificity_at_sensitivity,
}


def resamples(groups: Sequence[str], count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Bootstrap resamples of images by group: each draws as many groups as there are, with all their images.

    Images of one lesion or patient resemble each other; drawing them singly would make intervals too narrow.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rng = np.random.default_rng(seed)
    return [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(count)]


def estimate(metric: Metric, truth: Truth, scores: Scores, samples: list[NDArray[np.int64]]) -> Estimate:
    """A metric and its 95 % percentile interval over bootstrap `samples` (those on which it is not defined are skipped)."""
    values = np.array([metric(truth[sample], scores[sample]) for sample in samples])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if values.size else (math.nan, math.nan)
    return Estimate(
        value=metric(truth, scores), low=float(low), high=float(high), images=len(truth), positives=int(truth.sum())
    )


def measure(truth: Truth, scores: Scores, groups: Sequence[str], *, bootstrap: int = 1000) -> dict[str, Estimate]:
    """All of `METRICS` with intervals. `truth`: bool [N], `scores`: P(melanoma) [N], `groups`: lesion or patient [N]."""
    samples = resamples(groups, bootstrap)
    return {name: estimate(metric, truth, scores, samples) for name, metric in METRICS.items()}


def threshold_for_sensitivity(truth: Truth, scores: Scores, wanted: float) -> float:
    """The largest threshold at which at least the share `wanted` of the positives is referred (score ≥ threshold)."""
    positives = np.sort(scores[truth])[::-1]
    return float(positives[math.ceil(wanted * len(positives) - 1e-9) - 1])


def balanced_threshold(truth: Truth, scores: Scores) -> float:
    """The threshold with the largest sensitivity + specificity (Youden's index)."""
    false_positives, true_positives, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    best = int(np.argmax(true_positives - false_positives))
    return float(min(thresholds[best], 1.0))  # scikit-learn's first threshold is infinite


def operating_points(
    truth: Truth, scores: Scores, groups: Sequence[str], data: str, *, bootstrap: int = 1000
) -> dict[str, OperatingPoint]:
    """The named operating points, fixed on these images, with the figures they reach on the same images."""
    thresholds = {
        "sensitivity_95": threshold_for_sensitivity(truth, scores, 0.95),
        "sensitivity_90": threshold_for_sensitivity(truth, scores, 0.90),
        "balanced": balanced_threshold(truth, scores),
    }
    samples = resamples(groups, bootstrap)
    return {
        name: OperatingPoint(threshold=threshold, data=data, **at_threshold(truth, scores, threshold, samples))
        for name, threshold in thresholds.items()
    }


def at_threshold(
    truth: Truth, scores: Scores, threshold: float, samples: list[NDArray[np.int64]]
) -> dict[str, Estimate]:
    """Sensitivity and specificity of one threshold, with intervals."""
    return {
        "sensitivity": estimate(lambda t, s: sensitivity(t, s, threshold), truth, scores, samples),
        "specificity": estimate(lambda t, s: specificity(t, s, threshold), truth, scores, samples),
    }


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities float64 [N, 9] of logits [N, 9] divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    chances: NDArray[np.float64] = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
    return chances


def fit_temperature(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], shift: NDArray[np.float64] | float = 0.0
) -> float:
    """The T (0.05…20) for which softmax(logits/T + shift) has the least cross-entropy (Guo et al. 2017, one parameter).

    Args:
        logits: [N, 9].
        targets: leaf indices [N].
        shift: added after the division, for each leaf: `adapt.prior_shift`.
    """
    scaled = logits.astype(np.float64)
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        z = scaled / math.exp(log_temperature) + shift
        return float((np.logaddexp.reduce(z, axis=1) - z[rows, targets]).mean())

    # Convex in 1/T, hence with a single minimum in log T: a golden-section search cannot miss it.
    low, high, golden = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-5:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)
