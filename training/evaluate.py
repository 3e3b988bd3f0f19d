"""Thresholds and calibration: what is fixed on validation images and how sure it is. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.metrics import roc_curve

from dermserve.model_card import Estimate, OperatingPoint
from training.report.metrics import FIGURES, Bootstrap, Scores, Truth, measure, proportion

__all__ = ["measure"]  # besides what is defined here: one module to import figures and thresholds from


def roc_auc(truth: Truth, scores: Scores) -> float:
    """Area under the ROC curve; NaN where there are no positives or no negatives."""
    return FIGURES["roc_auc"].value(truth, scores)


def threshold_for_sensitivity(truth: Truth, scores: Scores, wanted: float) -> float:
    """A threshold at which the share `wanted` of the positives is referred (score ≥ threshold), and as few others.

    Every threshold between the last score that must be referred and the next lower one does the same here; the middle
    is taken, so that rounding in another runtime moves no image across it.
    """
    positives = np.sort(scores[truth])[::-1]
    return _below(float(positives[math.ceil(wanted * len(positives) - 1e-9) - 1]), scores)


def balanced_threshold(truth: Truth, scores: Scores) -> float:
    """The threshold with the largest sensitivity + specificity (Youden's index)."""
    false_positives, true_positives, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    best = int(np.argmax(true_positives - false_positives))
    return _below(float(min(thresholds[best], 1.0)), scores)  # scikit-learn's first threshold is infinite


def _below(threshold: float, scores: Scores) -> float:
    lower = scores[scores < threshold]
    return (threshold + float(lower.max())) / 2 if lower.size else threshold


def operating_points(
    truth: Truth, scores: Scores, groups: Sequence[str], data: str, *, bootstrap: int = 1000
) -> dict[str, OperatingPoint]:
    """The named operating points, fixed on these images, with the figures they reach on the same images."""
    thresholds = {
        "sensitivity_95": threshold_for_sensitivity(truth, scores, 0.95),
        "sensitivity_90": threshold_for_sensitivity(truth, scores, 0.90),
        "balanced": balanced_threshold(truth, scores),
    }
    return at_thresholds(truth, scores, groups, thresholds, data, bootstrap=bootstrap)


def at_thresholds(
    truth: Truth,
    scores: Scores,
    groups: Sequence[str],
    thresholds: dict[str, float],
    data: str,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, OperatingPoint]:
    """Sensitivity and specificity that given thresholds reach on these images; intervals: see `metrics.proportion`.

    `data` names the images.
    """
    drawn = Bootstrap.of(groups, bootstrap, seed)
    found, positives = {}, int(truth.sum())
    for name, threshold in thresholds.items():
        refer = scores >= threshold
        reached: dict[str, Estimate] = {
            "sensitivity": proportion(refer, truth, drawn, positives),
            "specificity": proportion(~refer, ~truth, drawn, positives),
        }
        found[name] = OperatingPoint(threshold=threshold, data=data, **reached)
    return found


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities float64 [N, 9] of logits [N, 9] divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    chances: NDArray[np.float64] = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
    return chances


def fit_calibration(
    logits: NDArray[np.floating[Any]], targets: NDArray[np.int64], shift: NDArray[np.float64] | float = 0.0
) -> tuple[float, NDArray[np.float64]]:
    """Temperature T and biases b for which softmax(logits/T + b) has the least cross-entropy.

    Bias-corrected temperature scaling (Alexandari, Kundaje and Shrikumar 2020): one temperature (Guo et al. 2017) and
    one bias a leaf. Rare leaves give their bias little ground to stand on, so a normal prior of unit variance holds each
    near `shift`, what balanced sampling alone would ask for.

    Args:
        logits: [N, 9].
        targets: leaf indices [N].
        shift: for each leaf, [9]: `adapt.prior_shift`.

    Returns:
        T, at least 0.05 and at most 20, and b, float64 [9].
    """
    scaled = logits.astype(np.float64)
    count, leaves = scaled.shape
    rows, prior = np.arange(count), np.broadcast_to(np.asarray(shift, np.float64), (leaves,))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        sharpness, bias = parameters[0], parameters[1:]
        z = scaled * sharpness + bias
        total = np.logaddexp.reduce(z, axis=1)
        residual = np.exp(z - total[:, None])
        residual[rows, targets] -= 1
        away = bias - prior
        value = (total - z[rows, targets]).sum() + (away**2).sum() / 2
        slope = np.concatenate([[(residual * scaled).sum()], residual.sum(axis=0) + away])
        return value / count, slope / count

    # Convex in 1/T and b, so that there is a single minimum.
    bounds = [(1 / 20, 20.0)] + [(None, None)] * leaves
    found = minimize(loss, np.concatenate([[1.0], prior]), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(1 / found.x[0]), found.x[1:]
