from __future__ import annotations

import numpy as np
import pytest

from dermserve.errors import StartupError
from export import parity
from export.parity import Images

TRUTH = np.array([True, True, True, True, False, False, False, False])
EXPECTED = np.array([0.9, 0.8, 0.3, 0.1, 0.6, 0.2, 0.05, 0.01], np.float32)


def answers(melanoma: np.ndarray, ood: np.ndarray | None = None) -> dict[str, np.ndarray]:
    malignant = np.minimum(melanoma + 0.05, 1)
    columns = np.stack([1 - malignant, np.zeros_like(melanoma), malignant, melanoma], axis=1).astype(np.float32)
    count = len(melanoma)
    distance = np.zeros((count, 1), np.float32) if ood is None else ood[:, None]
    return {"probabilities": columns, "cam": np.zeros((count, 10, 10), np.float32), "ood": distance}


def compare(changed: np.ndarray, thresholds: dict[str, float]) -> parity.Parity:
    images = Images("val", [np.zeros((300, 300, 3), np.uint8)] * len(TRUTH), TRUTH)
    return parity.compare(answers(changed), answers(EXPECTED), images, thresholds)


def test_equal_answers_lose_nothing() -> None:
    found = compare(EXPECTED, {"sensitivity_95": 0.25})
    assert (found.largest, found.auc_change, found.rank_agreement) == (0, 0, pytest.approx(1))
    assert found.sensitivity_change == {"sensitivity_95": 0}
    assert parity.headroom(found) == 1.0


def test_what_a_change_does_to_patients_is_counted() -> None:
    changed = EXPECTED.copy()
    changed[2] = 0.15  # a melanoma falls below the threshold and behind a harmless lesion
    found = compare(changed, {"sensitivity_95": 0.25, "balanced": 0.5})
    assert found.largest == pytest.approx(0.15, abs=1e-6)
    assert found.sensitivity_change == {"sensitivity_95": -0.25, "balanced": 0}
    assert found.specificity_change == {"sensitivity_95": 0, "balanced": 0}
    assert found.auc == pytest.approx(12 / 16)
    assert found.auc_change == pytest.approx(-1 / 16)
    assert found.rank_agreement is not None
    assert 0.9 < found.rank_agreement < 1
    assert parity.headroom(found) == pytest.approx(1 - 0.25 / parity.SENSITIVITY_LOSS), "the worst loss decides"


@pytest.mark.parametrize(
    ("auc", "sensitivity", "passes"),
    [(-0.002, -0.005, True), (-0.0021, 0, False), (0, -0.0051, False), (0.1, 0.1, True), (0.1, -0.0051, False)],
)
def test_the_gate_is_that_of_the_design(auc: float, sensitivity: float, passes: bool) -> None:
    found = compare(EXPECTED, {"sensitivity_95": 0.25}).model_copy(
        update={"auc_change": auc, "sensitivity_change": {"a": 0.0, "b": sensitivity}}
    )
    assert (parity.headroom(found) >= -1e-9) == passes


def test_a_gate_without_labels_never_passes() -> None:
    unlabelled = parity.compare(answers(EXPECTED), answers(EXPECTED), Images("some", []))
    with pytest.raises(ValueError, match="labelled"):
        parity.headroom(unlabelled)


def test_images_that_change_sides_of_abstention_are_counted() -> None:
    far = np.array([0.5, 1.2, 0.5, 1.05, 0.5, 0.5, 0.5, 0.5], np.float32)
    moved = np.array([0.5, 1.3, 0.5, 1.15, 0.5, 0.5, 0.5, 0.5], np.float32)
    found = parity.compare(answers(EXPECTED, moved), answers(EXPECTED, far), Images("val", []), None, 1.1)
    assert found.abstention_change == 1 / 8


@pytest.mark.parametrize(("difference", "passes"), [(0.0049, True), (0.0051, False), (float("nan"), False)])
def test_fp32_and_fp16_may_differ_in_rounding_alone(difference: float, passes: bool) -> None:
    found = compare(EXPECTED, {}).model_copy(update={"largest": difference})
    if passes:
        parity.require_close(found)
    else:
        with pytest.raises(StartupError, match="repository was left as it was"):
            parity.require_close(found)
