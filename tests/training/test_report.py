import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dermserve.labels import LEAVES
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from training.report import card as report_card
from training.report import page as report_page
from training.report import plots
from training.report import served as report_served
from training.report.console import PAGE, show_set
from training.report.examine import VALIDATION, Examiner, Found, Scored
from training.report.limits import MARK, with_measured
from training.report.subgroups import Subject

THRESHOLDS = {"sensitivity_95": 0.2, "balanced": 0.5}


@pytest.fixture
def images() -> Scored:
    """400 images of two sources; the second source's scores say nothing. Every fifth MEL is taken for NV."""
    rng = np.random.default_rng(4)
    targets = rng.choice([0, 1, 1, 1, 4, 5], 400)
    answers = np.where((targets == 0) & (np.arange(400) % 5 == 0), 1, targets)
    truth = targets == 0
    scores = np.clip(0.3 + 0.4 * truth * (np.arange(400) < 250) + rng.normal(0, 0.15, 400), 0, 1)
    return Scored(
        "val",
        VALIDATION,
        [f"ISIC_{i}" for i in range(400)],
        truth,
        scores,
        [str(i // 2) for i in range(400)],
        (targets, answers),
        ["HAM10000"] * 250 + ["ISIC2020"] * 145 + ["BCN20000"] * 5,
    )


@pytest.fixture
def subjects() -> dict[str, Subject]:
    return {
        f"ISIC_{i}": Subject("female" if i % 2 else "male", "under 30" if i < 12 else "45 to 59") for i in range(400)
    }


@pytest.fixture
def found(images: Scored, subjects: dict[str, Subject]) -> dict[str, Found]:
    return Examiner(THRESHOLDS, subjects, bootstrap=50).examine(images)


def test_sources_and_subgroups_are_measured_on_their_own_images(images: Scored, found: dict[str, Found]) -> None:
    assert list(found) == ["val", "val/HAM10000", "val/ISIC2020"]
    assert found["val/HAM10000"].metrics["roc_auc"].images == 250
    assert found["val/HAM10000"].metrics["roc_auc"].value > 0.9
    assert found["val/ISIC2020"].metrics["roc_auc"].value < 0.65
    whole = found["val"]
    rows = np.arange(400) % 2 == 1
    female = whole.evaluation.subgroups["sex"]["female"]
    assert female["roc_auc"].positives == images.truth[rows].sum()
    reached = (images.scores[rows & images.truth] >= 0.5).mean()
    assert female["balanced: sensitivity"].value == pytest.approx(reached)
    assert whole.points["balanced"].sensitivity.value == pytest.approx((images.scores[images.truth] >= 0.5).mean())


def test_what_is_too_small_is_said(found: dict[str, Found]) -> None:
    evaluation = found["val"].evaluation
    assert "site" not in evaluation.subgroups
    assert set(evaluation.subgroups["age"]) == {"45 to 59"}
    text = " ".join(evaluation.not_measured)
    assert "age under 30:" in text
    assert "source BCN20000:" in text
    assert "needs 10 of each" in text


def test_confusion_and_recall_count_the_leaves(images: Scored, found: dict[str, Found]) -> None:
    leaves = found["val"].evaluation.leaves
    assert leaves is not None
    assert images.leaves is not None
    targets, answers = images.leaves
    assert leaves.confusion[0][1] == ((targets == 0) & (answers == 1)).sum() > 0
    assert sum(map(sum, leaves.confusion)) == 400
    assert set(leaves.recall) == {"MEL", "NV", "BKL", "DF"}
    missed = leaves.confusion[0][1] / sum(leaves.confusion[0])
    assert leaves.recall["MEL"].value == pytest.approx(1 - missed)
    assert leaves.recall["MEL"].low < 1 - missed < leaves.recall["MEL"].high
    assert leaves.balanced_accuracy.value == pytest.approx(1 - missed / 4)
    assert [row[LEAVES.index("SCC")] for row in leaves.confusion] == [0] * 9


def test_console_and_card_give_perfect_figures_the_same_interval(images: Scored) -> None:
    """All melanomas are referred and all moles recognised: 1.000, but not for sure."""
    card = ModelCard.read(Settings().model_repository)
    found = Examiner(dict.fromkeys(card.operating_points, 0.0), bootstrap=50).examine(replace(images, sources=()))
    point = found["val"].points["sensitivity_95"]
    leaves = found["val"].evaluation.leaves
    assert leaves is not None
    assert (point.sensitivity.value, point.specificity.value, leaves.recall["NV"].value) == (1, 0, 1)
    assert point.sensitivity.low < point.sensitivity.high == 1
    assert 0 == point.specificity.low < point.specificity.high
    assert leaves.recall["NV"].low < leaves.recall["NV"].high == 1
    console = Console(width=200, record=True, file=io.StringIO())
    show_set(console, "val", found)
    printed = console.export_text()
    assert f"1.0000 │ {point.sensitivity.low:.4f} – 1.0000" in printed
    assert f"1.00 ({leaves.recall['NV'].low:.2f}–1.00)" in printed
    written = report_page.page(report_served.updated(card, found), {}, None)
    assert f"refers 100 ({100 * point.sensitivity.low:.0f}–100)" in written
    assert f"1.000 ({leaves.recall['NV'].low:.3f}–1.000)" in written


def test_one_changed_label_changes_the_card_and_the_page(images: Scored, subjects: dict[str, Subject]) -> None:
    card = ModelCard.read(Settings().model_repository)
    truth = images.truth.copy()
    truth[int(np.argmax(truth))] = False
    pages = []
    for one in (images, replace(images, truth=truth)):
        found = Examiner(THRESHOLDS | dict.fromkeys(card.operating_points, 0.2), subjects, 50).examine(one)
        pages.append(report_page.page(report_served.updated(card, found), {}, None))
    assert pages[0] != pages[1]
    assert f"| melanomas | {images.truth.sum()} |" in pages[0]
    assert f"| melanomas | {truth.sum()} |" in pages[1]


def test_limits_follow_the_figures_and_never_pile_up(images: Scored, found: dict[str, Found]) -> None:
    test = Examiner(THRESHOLDS, {}, 50).examine(replace(images, name="other-test", sources=(), leaves=None))
    limits = with_measured(["Research use only."], found | test)
    assert limits[0] == "Research use only."
    assert all(limit.startswith(MARK) for limit in limits[1:])
    text = " ".join(limits)
    assert f"ROC-AUC {test['other-test'].metrics['roc_auc'].value:.3f}" in text
    assert f"refers {1 - found['val'].points['sensitivity_95'].specificity.value:.0%}" in text
    assert "(ISIC2020) to" in text
    assert with_measured(limits, found | test) == limits


def test_the_page_holds_the_figures_of_the_card_and_its_plots(
    images: Scored, found: dict[str, Found], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    card = ModelCard.read(Settings().model_repository)
    examiner = Examiner({name: point.threshold for name, point in card.operating_points.items()}, {}, 50)
    found = examiner.examine(images)
    card = report_served.updated(card, found)
    stale = tmp_path / report_card.IMAGES / "gone-roc.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    written = report_card.write_page(card, found, {"val": images}, tmp_path / "model-card.md")
    assert not stale.exists()
    text = written[0].read_text()
    for figure in (*card.metrics["val"].values(), *card.metrics["val/ISIC2020"].values()):
        assert f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})" in text
    for limit in card.limits:
        assert f"- {limit}" in text
    for source in card.data:
        assert source["licence"] in text
    for picture in written[1:]:
        assert f"({picture.relative_to(tmp_path)})" in text
        with Image.open(picture) as image:
            assert min(image.size) > 400
    assert {path.name for path in written[1:]} >= {"val-roc.png", "val-reliability.png", "val-confusion.png"}


def test_the_committed_page_is_the_one_of_the_committed_card() -> None:
    if not PAGE.exists():
        pytest.skip("docs/model-card.md has not been written yet: dermserve evaluate --write-card")
    card = ModelCard.read(Settings().model_repository)
    assert PAGE.read_text() == report_card.text(card, PAGE)


def test_the_plots_name_their_figures(images: Scored, found: dict[str, Found]) -> None:
    pytest.importorskip("matplotlib")
    auc, error = found["val"].metrics["roc_auc"].value, found["val"].metrics["calibration_error"].value
    roc = plots.roc(images, found["val"])
    assert f"{auc:.3f}" in roc.axes[0].get_title(loc="left")
    point = np.asarray(roc.axes[0].lines[2].get_xydata())[0]  # after chance and curve, in the order of the thresholds
    reached = found["val"].points["sensitivity_95"]
    assert point == pytest.approx((1 - reached.specificity.value, reached.sensitivity.value))
    assert f"{error:.3f}" in plots.reliability(images, found["val"]).axes[0].get_title(loc="left")


def test_reliability_bins_hold_the_same_number_of_images_and_their_share_of_melanoma() -> None:
    scores = np.linspace(0, 1, 1500)
    truth = np.arange(1500) % 4 == 0
    means, shares, errors = plots.reliability_bins(truth, scores)
    assert means == pytest.approx((np.arange(15) + 0.5) / 15, abs=1e-3)
    assert shares == pytest.approx(0.25)
    # Wilson's interval of 25 of 100: 0.1755 … 0.3430.
    assert (shares - errors[0])[0] == pytest.approx(0.1755, abs=2e-3)
    assert (shares + errors[1])[0] == pytest.approx(0.3430, abs=2e-3)
