import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from training.report import metrics
from training.report.metrics import FIGURES, Bootstrap, measure, ranked

Cases = tuple[NDArray[np.bool_], NDArray[np.float64], list[str]]


@pytest.fixture
def cases() -> Cases:
    """300 images of 120 lesions, many with the same score."""
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.25
    scores = (1 / (1 + np.exp(-(rng.normal(size=300) + 1.5 * truth - 1.5)))).round(2)
    return truth, scores, [str(lesion) for lesion in rng.integers(120, size=300)]


def test_the_figures_are_those_of_scikit_learn_and_of_the_challenges_own_code(cases: Cases) -> None:
    classification = pytest.importorskip("isic_challenge_scoring.metrics")
    pandas = pytest.importorskip("pandas")
    truth, scores, groups = cases
    found = measure(truth, scores, groups, bootstrap=10)
    assert set(found) == set(FIGURES)
    columns = [pandas.Series(values) for values in (truth.astype(float), scores, np.ones(300))]
    expected = {
        "roc_auc": roc_auc_score(truth, scores),
        "average_precision": average_precision_score(truth, scores),
        "brier_score": brier_score_loss(truth, scores),
        "partial_auc_above_80_sensitivity": classification.auc_above_sensitivity(*columns, 0.8),
        "specificity_at_95_sensitivity": max(
            (scores[~truth] < t).mean() for t in scores if (scores[truth] >= t).mean() >= 0.95
        ),
        "sensitivity_at_95_specificity": max(
            (scores[truth] >= t).mean() for t in scores if (scores[~truth] < t).mean() >= 0.95
        ),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_weighted_resample_gives_what_the_repeated_images_give(cases: Cases) -> None:
    truth, scores, groups = cases
    drawn = Bootstrap.of(groups, 5, seed=3)
    (weights,) = drawn.weights()
    for name, figure in FIGURES.items():
        resampled = figure.resampled(ranked(truth, scores, weights))
        for row, value in zip(weights, resampled, strict=True):
            repeated = np.repeat(np.arange(300), row.astype(int))
            assert figure.value(truth[repeated], scores[repeated]) == pytest.approx(value, abs=1e-12), name
    shares = drawn.ratios(truth & (scores > 0.3), truth)
    for row, value in zip(weights, shares, strict=True):
        repeated = np.repeat(np.arange(300), row.astype(int))
        assert value == pytest.approx((scores[repeated][truth[repeated]] > 0.3).mean())


def test_a_resample_draws_whole_groups_as_many_as_there_are() -> None:
    drawn = Bootstrap.of(["a", "b", "a", "c", "b", "a"], 50)
    (weights,) = drawn.weights()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    assert len(np.unique(weights[:, 0])) > 2


def test_the_order_of_the_images_has_no_say(cases: Cases) -> None:
    truth, scores, groups = cases
    order = np.random.default_rng(9).permutation(300)
    turned = measure(truth[order], scores[order], [groups[row] for row in order], bootstrap=50)
    for name, figure in measure(truth, scores, groups, bootstrap=50).items():
        assert turned[name].model_dump() == pytest.approx(figure.model_dump(), abs=1e-12), name


def test_the_calibration_error_is_the_mean_gap_of_fifteen_equal_bins() -> None:
    # Bin k (k = 0…14) holds 20 images of score (k + 0.5)/15, of which the first k are melanomas.
    scores = np.repeat((np.arange(15) + 0.5) / 15, 20)
    truth = np.tile(np.arange(20), 15) < np.repeat(np.arange(15), 20)
    expected = np.mean([abs(k / 20 - (k + 0.5) / 15) for k in range(15)])
    found = measure(truth, scores, [str(i) for i in range(300)], bootstrap=200)
    assert found["calibration_error"].value == pytest.approx(expected)
    assert found["calibration_error_equal_width"].value == pytest.approx(expected)
    assert found["calibration_error"].low < expected < found["calibration_error"].high
    calibrated = np.random.default_rng(1).random(20_000)
    drawn = np.random.default_rng(2).random(20_000) < calibrated
    assert FIGURES["calibration_error"].value(drawn, calibrated) < 0.02
    assert FIGURES["calibration_error"].value(drawn, calibrated**3) > 0.15


def test_without_the_challenges_code_its_figure_is_left_out(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    found = measure(*cases, bootstrap=10)
    assert set(FIGURES) - set(found) == {"partial_auc_above_80_sensitivity"}


def test_where_no_resample_defines_a_figure_nothing_is_known() -> None:
    figure = metrics.estimate(0.5, np.array([np.nan, np.nan]), 2, 1)
    assert (figure.low, figure.high) == (0, 1)
    assert metrics.estimate(0.5, np.array([np.nan, 0.4, 0.4]), 2, 1).low == 0.4


@pytest.mark.parametrize(
    ("hits", "images", "groups", "low", "high"),
    [(10, 10, 10, 0.7225, 1), (0, 10, 10, 0, 0.2775), (10, 10, 5, 0.5655, 1), (200, 200, 200, 0.9812, 1)],
    ids=["all of 10", "none of 10", "all of 10 in 5 groups", "all of 200"],
)
def test_where_all_or_none_are_hits_the_interval_still_has_a_width(
    hits: int, images: int, groups: int, low: float, high: float
) -> None:
    """Among as many other images, whose groups do not count."""
    among = np.arange(2 * images) < images
    drawn = Bootstrap.of([f"{inside}{row % groups}" for row, inside in enumerate(among)], 200)
    found = metrics.proportion(np.arange(2 * images) < hits, among, drawn, images)
    assert (found.value, found.images, found.positives) == (hits / images, 2 * images, images)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_share_is_never_narrower_than_its_resamples(cases: Cases) -> None:
    truth, scores, groups = cases
    drawn = Bootstrap.of(groups, 500)
    found = metrics.proportion(scores > 0.3, truth, drawn, 1)
    low, high = np.percentile(drawn.ratios((scores > 0.3) & truth, truth), [2.5, 97.5])
    assert found.low <= low < found.value < high <= found.high
    nothing = metrics.proportion(truth, np.zeros(300, bool), drawn, 0)
    assert np.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, 1)
