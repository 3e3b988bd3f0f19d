import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, roc_auc_score

from dermserve.errors import DermserveError
from dermserve.labels import CSV_HEADER
from tests.training.conftest import draw, write
from training import datasets
from training.commands import evaluate
from training.data_commands import data


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value, "images": 1, "positives": 1}


@pytest.fixture
def card(tmp_path: Path) -> Path:
    point = {"threshold": 0.5, "sensitivity": figure(1.0), "specificity": figure(1.0), "data": "val"}
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"operating_points": {"balanced": point}}))
    return path


class Case:
    """Predictions and labels of 60 images, as files."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.truth = rng.random(60) < 0.3
        self.scores = np.clip(0.35 + 0.3 * self.truth + rng.normal(0, 0.2, 60), 0, 1).round(6)
        self.predictions, self.labels, self.figures = folder / "out.csv", folder / "labels.csv", folder / "out.json"
        self.rows: list[list[object]] = [
            [f"some/folder/ISIC_{i}.jpg", 1 - score, 0, score, score] for i, score in enumerate(self.scores)
        ]
        self.write()

    def write(self, header: tuple[str, ...] = CSV_HEADER, columns: tuple[str, str] = ("image", "melanoma")) -> None:
        with self.predictions.open("w", newline="") as file:
            csv.writer(file).writerows([header, *self.rows])
        with self.labels.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *((f"ISIC_{i}", int(t)) for i, t in enumerate(self.truth))])

    def run(self, card: Path, *more: str) -> str:
        arguments = [str(self.predictions), str(self.labels), "--card", str(card), "--json", str(self.figures), *more]
        result = CliRunner().invoke(evaluate, [*arguments, "--bootstrap", "100"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_figures_are_sklearns_and_the_json_holds_the_same(case: Case, card: Path) -> None:
    output = case.run(card)
    auc = roc_auc_score(case.truth, case.scores)
    found = json.loads(case.figures.read_text())
    assert found["metrics"]["roc_auc"]["value"] == pytest.approx(auc)
    precision = average_precision_score(case.truth, case.scores)
    assert found["metrics"]["average_precision"]["value"] == pytest.approx(precision)
    point = found["operating_points"]["balanced"]
    assert point["sensitivity"]["value"] == pytest.approx((case.scores[case.truth] >= 0.5).mean())
    assert point["specificity"]["value"] == pytest.approx((case.scores[~case.truth] < 0.5).mean())
    assert f"{auc:.4f}" in output
    assert f"60 images, {case.truth.sum()} melanomas" in output


def test_one_changed_label_changes_the_figure(case: Case, card: Path) -> None:
    case.run(card)
    before = json.loads(case.figures.read_text())["metrics"]["roc_auc"]["value"]
    case.truth[int(np.argmax(case.truth))] = False
    case.write()
    case.run(card)
    assert json.loads(case.figures.read_text())["metrics"]["roc_auc"]["value"] != before


def test_the_labels_of_isic_2019_and_2020_are_read(case: Case, card: Path) -> None:
    case.run(card)
    expected = json.loads(case.figures.read_text())["metrics"]["roc_auc"]["value"]
    for columns in (("image", "MEL"), ("image_name", "target")):
        case.write(columns=columns)
        case.run(card)
        assert json.loads(case.figures.read_text())["metrics"]["roc_auc"]["value"] == expected


def test_what_cannot_be_joined_is_refused(case: Case, card: Path) -> None:
    case.write(header=("filename", "Benign", "Malignant", "Suspicious", "Melanoma"))
    with pytest.raises(DermserveError, match="it must be filename,Benign,Suspicious,Malignant,Melanoma"):
        case.run(card)
    last = case.rows.pop()
    case.write()
    with pytest.raises(DermserveError, match=r"labels 1 images that have no prediction .* ISIC_59"):
        case.run(card)
    assert "Left out, in one of the files only: 1 images" in case.run(card, "--partial")
    case.rows += [last, ["elsewhere/ISIC_3.png", 1, 0, 0, 0]]
    case.write()
    with pytest.raises(DermserveError, match="scores ISIC_3 more than once"):
        case.run(card)
    case.rows[-1] = ["ISIC_60.jpg", 1, 0, 0, 0]
    case.write()
    with pytest.raises(DermserveError, match=r"scores 1 images that have no label .* ISIC_60"):
        case.run(card)
    case.rows[-1] = ["ISIC_60.jpg", 1, 0, 0, "nan"]
    case.write()
    with pytest.raises(DermserveError, match="melanoma probability of ISIC_60 is 'nan'"):
        case.run(card)


def test_labels_that_contradict_themselves_are_refused(case: Case, card: Path) -> None:
    text = case.labels.read_text()
    case.labels.write_text(text + "ISIC_0.jpg,1\n")
    with pytest.raises(DermserveError, match="labels ISIC_0 more than once"):
        case.run(card)
    case.labels.write_text(text.replace("ISIC_7,0", "ISIC_7,maybe").replace("ISIC_7,1", "ISIC_7,maybe"))
    with pytest.raises(DermserveError, match="label of ISIC_7 is 'maybe'"):
        case.run(card)


def test_help_needs_no_torch_and_neither_does_evaluate(case: Case, card: Path) -> None:
    code = (
        "import sys\n"
        "from dermserve.cli import shell\n"
        "assert not {'sklearn', 'rich.console', 'numpy'} & set(sys.modules), 'help loads too much'\n"
        "shell(sys.argv[1:], prog_name='dermserve', standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was loaded'"
    )
    for arguments in (["train", "--help"], ["evaluate", str(case.predictions), str(case.labels), "--card", str(card)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_prepare_takes_every_test_set_and_says_what_no_part_uses(own_isic: Path, tmp_path: Path) -> None:
    rows = [
        {"image": r.name, "group_id": "", "split": "test" if r.patient == "IP_7" else "val" if r.patient else "train"}
        for r in datasets.read(own_isic).records
    ]
    (own_isic / "isic2020/ISIC_2020_Training_Duplicates.csv").unlink()  # one pair joins both years
    write(own_isic / "splits.csv", rows)  # type: ignore[arg-type]
    for clinic, count in (("a", 1), ("b", 2)):
        names = [f"{clinic}{i}" for i in range(count)]
        write(own_isic / clinic / "test/labels.csv", [{"image": name, "melanoma": 1} for name in names])
        for name in names:
            draw(own_isic / clinic / f"test/{name}.jpg", 0, True)
    done = CliRunner().invoke(data, ["prepare", str(own_isic), "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0, done.output
    assert "3 labelled images are used for neither part of splits.csv" in done.output
    assert "training and validation: 113 images" in done.output
    assert "test set a-test: 1 images" in done.output
    assert "test set b-test: 2 images" in done.output
