import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from training import evaluate
from training.report import metrics


@pytest.fixture
def cases() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.2
    return truth, 1 / (1 + np.exp(-(rng.normal(size=400) + 1.5 * truth - 1)))


def test_auc_is_sklearns_and_follows_the_labels(cases: tuple[NDArray[np.bool_], NDArray[np.float64]]) -> None:
    truth, scores = cases
    groups = [str(i) for i in range(400)]
    found = evaluate.measure(truth, scores, groups, bootstrap=200)["roc_auc"]
    assert found.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found.low < found.value < found.high
    assert (found.images, found.positives) == (400, truth.sum())
    changed = truth.copy()
    changed[np.flatnonzero(truth)[0]] = False
    assert evaluate.measure(changed, scores, groups, bootstrap=10)["roc_auc"].value != found.value


def test_images_of_one_lesion_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    truth, scores = np.repeat(rng.random(60) < 0.5, 10), np.repeat(rng.random(60), 10)
    lesions = [str(i // 10) for i in range(600)]
    alone = evaluate.measure(truth, scores, [str(i) for i in range(600)], bootstrap=300)["roc_auc"]
    grouped = evaluate.measure(truth, scores, lesions, bootstrap=300)["roc_auc"]
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_operating_points_reach_their_sensitivity_and_no_larger_threshold_does(
    cases: tuple[NDArray[np.bool_], NDArray[np.float64]],
) -> None:
    truth, scores = cases
    points = evaluate.operating_points(truth, scores, [str(i) for i in range(400)], "val", bootstrap=50)
    assert set(points) == {"sensitivity_95", "sensitivity_90", "balanced"}
    for name, wanted in (("sensitivity_95", 0.95), ("sensitivity_90", 0.90)):
        point = points[name]
        assert point.sensitivity.value == (scores[truth] >= point.threshold).mean() >= wanted
        assert point.specificity.value == (scores[~truth] < point.threshold).mean()
        last = scores[truth & (scores >= point.threshold)].min()
        assert (scores[truth] > last).mean() < wanted
        # Away from every score: what another runtime rounds differently stays on its side.
        assert np.abs(scores - point.threshold).min() == pytest.approx((last - scores[scores < last].max()) / 2)
    at_95 = metrics.FIGURES["specificity_at_95_sensitivity"].value(truth, scores)
    assert points["sensitivity_95"].specificity.value == pytest.approx(at_95)
    youden = points["balanced"].sensitivity.value + points["balanced"].specificity.value
    sums = [(scores[truth] >= t).mean() + (scores[~truth] < t).mean() for t in scores]
    assert youden == pytest.approx(max(sums))


def test_the_temperature_that_was_put_in_comes_out() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20_000, 9)) * 2
    chances = evaluate.softmax(logits)
    targets = np.array([rng.choice(9, p=row) for row in chances])
    for factor in (2.5, 0.4):
        temperature, bias = evaluate.fit_calibration(logits * factor, targets)
        assert temperature == pytest.approx(factor, rel=0.05)
        assert np.abs(bias - bias.mean()).max() < 0.1, "nothing was off but the sharpness"


def test_figures_without_a_meaning_are_nan() -> None:
    scores, truth = np.array([0.1, 0.9]), np.array([True, True])
    assert math.isnan(evaluate.roc_auc(truth, scores))
    point = evaluate.at_thresholds(truth, scores, ["a", "b"], {"half": 0.5}, "val", bootstrap=10)["half"]
    assert point.sensitivity.value == 0.5
    assert math.isnan(point.specificity.value)


def test_the_temperature_is_found_where_balanced_sampling_moved_the_prior() -> None:
    """Scores 2× too sharp, learnt under another prior: T is 2, and the biases are those that the priors ask for."""
    rng = np.random.default_rng(0)
    drawn, natural = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.8, 0.1])
    targets = rng.choice(3, 40_000, p=natural)
    features = rng.normal(np.eye(3)[targets] * 1.5, 1.0)
    honest = features * 1.5 + np.log(drawn)  # log-posterior under the drawn prior, up to a constant
    shift = np.log(natural / drawn)
    for known in (shift, 0.0):
        temperature, bias = evaluate.fit_calibration(2 * honest, targets, known)
        assert temperature == pytest.approx(2, rel=0.03)
        assert bias - bias.mean() == pytest.approx(shift - shift.mean(), abs=0.06)
    few = evaluate.fit_calibration(2 * honest[:3], targets[:3], shift)[1]
    assert few == pytest.approx(shift, abs=1.5), "three images move no bias far"
