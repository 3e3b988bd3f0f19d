"""What `dermserve evaluate` makes of images that the weights have seen, of data folders and of subgroups."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dermserve.errors import DermserveError
from dermserve.labels import CSV_HEADER
from dermserve.model_card import SeenImages
from tests.training.conftest import write
from training import datasets, splits
from training.commands import evaluate


def score(path: Path, names: list[str], truth: list[bool]) -> Path:
    rng = np.random.default_rng(1)
    values = np.clip(0.3 + 0.3 * np.array(truth) + rng.normal(0, 0.15, len(names)), 0, 1).round(6)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEADER)
        writer.writerows([f"{name}.jpg", 1 - value, 0, value, value] for name, value in zip(names, values, strict=True))
    return path


class Run:
    """`isic` divided; a card that knows the parts; predictions of everything and of the validation images."""

    def __init__(self, isic: Path, folder: Path) -> None:
        self.folder, self.isic, self.json = folder, isic, folder / "out.json"
        parts = splits.split(datasets.read(isic))
        self.train = [record.name for record in parts.train]
        self.validation = [record.name for record in parts.validation]
        records = [*parts.train, *parts.validation]
        self.everything = score(
            folder / "all.csv", [record.name for record in records], [record.leaf == "MEL" for record in records]
        )
        self.card(SeenImages.of(self.train, self.validation))

    def card(self, seen: SeenImages | None) -> None:
        figure = {"value": 0.5, "low": 0.4, "high": 0.6, "images": 1, "positives": 1}
        point = {"threshold": 0.45, "sensitivity": figure, "specificity": figure, "data": "val"}
        content = {"operating_points": {"balanced": point}, "seen": seen and seen.model_dump()}
        (self.folder / "card.json").write_text(json.dumps(content))

    def evaluate(self, predictions: Path, labels: Path, *more: str) -> str:
        fixed = ["--card", str(self.folder / "card.json"), "--json", str(self.json), "--bootstrap", "20"]
        result = CliRunner().invoke(evaluate, [str(predictions), str(labels), *fixed, *more])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def roc_auc(self) -> dict[str, float]:
        figure: dict[str, float] = json.loads(self.json.read_text())["metrics"]["roc_auc"]
        return figure


@pytest.fixture
def run(isic: Path, tmp_path: Path) -> Run:
    return Run(isic, tmp_path)


def test_images_that_were_trained_on_are_refused_or_left_out_by_name(run: Run) -> None:
    with pytest.raises(DermserveError, match=rf"{len(run.train)} of the 116 images were trained on .*leave-out"):
        run.evaluate(run.everything, run.isic)
    output = run.evaluate(run.everything, run.isic, "--training-images", "leave-out")
    assert run.roc_auc()["images"] == len(run.validation)
    assert f"trained on them: {len(run.train)} images" in output
    assert f"{len(run.validation)} of these are validation images: temperature and thresholds were fixed" in output
    output = run.evaluate(run.everything, run.isic, "--training-images", "allow")
    assert run.roc_auc()["images"] == 116
    assert "say nothing about new images" in output
    assert "say nothing about new images" in json.loads(run.json.read_text())["role"]


def test_ids_are_known_again_with_and_without_downsampled(run: Run, tmp_path: Path) -> None:
    name = next(name for name in run.train if name.endswith("_downsampled"))
    names = [name.removesuffix("_downsampled"), "NEW_1", "NEW_2"]
    predictions = score(tmp_path / "new.csv", names, [True, False, True])
    rows: list[dict[str, object]] = [{"image": name, "melanoma": int(i != 1)} for i, name in enumerate(names)]
    labels = write(tmp_path / "labels.csv", rows)
    with pytest.raises(DermserveError, match=f"1 of the 3 images were trained on .{names[0]}"):
        run.evaluate(predictions, labels)
    run.card(None)
    assert "Whether these images were trained on is unknown" in run.evaluate(predictions, labels)
    run.card(SeenImages.of(["OLD"], []))
    assert "trained on" not in run.evaluate(predictions, labels)
    assert json.loads(run.json.read_text())["role"].startswith("test: ")


def test_a_damaged_list_of_seen_images_is_no_permission(run: Run) -> None:
    run.card(SeenImages(train="not base64!", validation=""))
    with pytest.raises(DermserveError, match="list of seen images is damaged"):
        run.evaluate(run.everything, run.isic)


def test_sources_and_people_are_told_apart(own_isic: Path, tmp_path: Path) -> None:
    metadata = own_isic / "isic2019/ISIC_2019_Training_Metadata.csv"
    lines = metadata.read_text().splitlines()
    for number in range(1, len(lines)):
        lines[number] += "female" if number % 8 < 4 else "male"
    metadata.write_text("\n".join(lines) + "\n")
    run = Run(own_isic, tmp_path)
    run.card(None)
    output = run.evaluate(run.everything, own_isic)
    found = json.loads(run.json.read_text())
    assert found["sources"]["ISIC2017"]["metrics"]["roc_auc"]["images"] == 40
    assert "source HAM10000: 0 melanomas and 40 others; a subgroup needs 10 of each." in output
    sizes = found["subgroups"]["sex"]
    assert {name: figures["roc_auc"]["images"] for name, figures in sizes.items()} == {"female": 40}
    assert "sex male: 0 melanomas and 40 others" in output
    # The same tables beside a single labels file.
    truth = own_isic / "isic2019/ISIC_2019_Training_GroundTruth.csv"
    run.evaluate(run.everything, truth, "--partial")
    again = json.loads(run.json.read_text())["subgroups"]["sex"]
    values = {name: figures["roc_auc"]["value"] for name, figures in sizes.items()}
    assert {name: figures["roc_auc"]["value"] for name, figures in again.items()} == values


@pytest.mark.parametrize("row", [1, 3], ids=["first", "later"])
@pytest.mark.parametrize(
    ("change", "fields"),
    [(("ISIC_", "left, ISIC_"), 6), ((",0,", ","), 4)],
    ids=["an unquoted comma in the name", "a column missing"],
)
def test_a_row_with_shifted_values_is_refused_by_its_line(
    run: Run, row: int, change: tuple[str, str], fields: int
) -> None:
    lines = run.everything.read_text().splitlines()
    lines[row] = lines[row].replace(*change)
    run.everything.write_text("\n".join(lines) + "\n\n")
    with pytest.raises(DermserveError, match=f"all.csv: line {row + 1} has {fields} fields, not 5"):
        run.evaluate(run.everything, run.isic)


def test_plots_are_written_where_they_are_wanted(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "plots"
    output = run.evaluate(run.everything, run.isic, "--training-images", "leave-out", "--plots", str(folder))
    names = {path.name for path in folder.iterdir()}
    assert names == {"roc.png", "precision_recall.png", "reliability.png", "scores.png"}
    assert str(folder / "roc.png") in output


def test_both_ways_of_calling_it_exclude_each_other(run: Run, tmp_path: Path) -> None:
    for arguments in ([], [str(run.everything)], [str(run.everything), str(run.isic), "--write-card", str(run.isic)]):
        result = CliRunner().invoke(evaluate, arguments)
        assert result.exit_code == 2
        assert "--write-card" in result.output


def test_a_folder_must_hold_the_validation_images_of_the_weights_and_no_test_image_they_saw(
    run: Run, isic: Path, tmp_path: Path
) -> None:
    from training.report import data as report_data

    seen = SeenImages.of(run.train, run.validation)
    sets = report_data.read(isic, 0, seen)
    assert [labelled.name for labelled in sets] == ["val"]
    assert sets[0].names == run.validation
    assert report_data.read(isic, 1, seen)[0].names == run.validation, "the card knows, whatever a division makes"
    assert report_data.read(isic, 1, None)[0].names != run.validation
    more = SeenImages.of(run.train, [*run.validation, "ISIC_ELSEWHERE"])
    with pytest.raises(
        DermserveError, match=f"{len(run.validation)} of the {len(run.validation) + 1} validation images"
    ):
        report_data.read(isic, 0, more)
    own = tmp_path / "data"
    shutil.copytree(isic, own)
    (own / "late-test").mkdir()
    for number in (1, 2):
        shutil.copy(isic / "isic2020/train/ISIC_9000000.jpg", own / f"late-test/NEW_{number}.jpg")
    write(own / "late-test/labels.csv", [{"image": "NEW_1", "melanoma": 1}, {"image": "NEW_2", "melanoma": 0}])
    assert [labelled.name for labelled in report_data.read(own, 0, seen)] == ["val", "late-test"]
    assert [labelled.role.split(":")[0] for labelled in report_data.read(own, 0, seen)] == ["validation", "test"]
    assert [labelled.role.split(":")[0] for labelled in report_data.read(own, 0, None)] == ["unknown", "unknown"]
    used = SeenImages.of([*run.train, "NEW_2"], run.validation)
    with pytest.raises(DermserveError, match="1 images of the test set late-test were used in training"):
        report_data.read(own, 0, used)
    name = next(name for name in run.train if name.endswith("_downsampled")).removesuffix("_downsampled")
    (own / "late-test/NEW_2.jpg").rename(own / f"late-test/{name}.jpg")
    write(own / "late-test/labels.csv", [{"image": "NEW_1", "melanoma": 1}, {"image": name, "melanoma": 0}])
    with pytest.raises(DermserveError, match=f"1 images of the test set late-test .* for example {name}"):
        report_data.read(own, 0, None)
