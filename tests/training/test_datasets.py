import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from tests.training.conftest import write
from training import datasets


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_every_image_of_both_years_gets_its_leaf(isic: Path) -> None:
    dataset = datasets.read(isic)
    counts = Counter((record.dataset, record.leaf) for record in dataset.records)
    assert sum(counts.values()) == 116
    assert counts["isic2019", "MEL"] == 20
    assert counts["isic2020", "MEL"] == 6
    assert counts["isic2020", "NV"] + counts["isic2020", "BENIGN_NOS"] == 30
    assert counts["isic2020", "BENIGN_NOS"] == 18
    assert counts["isic2019", "BENIGN_NOS"] == 0
    assert {record.leaf for record in dataset.records} <= set(LEAVES)
    assert all(record.path.stem == record.name for record in dataset.records)


def test_sources_lesions_and_patients_are_read(isic: Path) -> None:
    records = {record.name: record for record in datasets.read(isic).records}
    assert records["ISIC_0000000"].source == "ISIC2017"
    assert records["ISIC_0000002"].source == "HAM10000"
    assert records["ISIC_0000003_downsampled"].lesion == records["ISIC_0000002"].lesion == "HAM_1"
    assert records["ISIC_9000004"].patient == "IP_1"


def test_the_diagnoses_of_2020_roll_up_as_documented() -> None:
    mapped = datasets.ISIC_2020_DIAGNOSES
    assert mapped["unknown"] == "BENIGN_NOS"
    assert mapped["atypical melanocytic proliferation"] == "AK"
    assert [name for name, leaf in mapped.items() if leaf == "MEL"] == ["melanoma"]


def test_unk_is_left_out_with_a_note(own_isic: Path) -> None:
    table = own_isic / "isic2019/ISIC_2019_Training_GroundTruth.csv"
    replace(table, "ISIC_0000000,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0", "ISIC_0000000,0,0,0,0,0,0,0,0,1")
    dataset = datasets.read(own_isic)
    assert len(dataset.records) == 115
    assert any("1 images of the class UNK" in note for note in dataset.notes)


def test_an_image_without_its_downsampled_suffix_is_found(own_isic: Path) -> None:
    image = own_isic / "isic2019/ISIC_2019_Training_Input/ISIC_0000001_downsampled.jpg"
    image.rename(image.with_name("ISIC_0000001.jpg"))
    records = {record.name: record for record in datasets.read(own_isic).records}
    assert records["ISIC_0000001_downsampled"].path.name == "ISIC_0000001.jpg"


@pytest.mark.parametrize(
    ("table", "old", "new", "says"),
    [
        ("isic2019/ISIC_2019_Training_GroundTruth.csv", "ISIC_0000000,1.0", "ISIC_0000000,0.0", "0 classes"),
        (
            "isic2019/ISIC_2019_Training_GroundTruth.csv",
            "ISIC_0000002,",
            "ISIC_7777777,",
            "no image file: ISIC_7777777",
        ),
        ("isic2019/ISIC_2019_Training_Metadata.csv", "ISIC_0000002,", "ISIC_7777777,", "no row in the metadata"),
        ("isic2020/train.csv", "unknown,benign", "wart,benign", "unknown diagnosis 'wart'"),
        ("isic2020/train.csv", "nevus,benign,0", "nevus,benign,1", "has target 1"),
        ("isic2020/train.csv", "ISIC_9000001,", "ISIC_9000002,", "more than once: ISIC_9000002"),
    ],
)
def test_a_faulty_table_is_refused_by_name(own_isic: Path, table: str, old: str, new: str, says: str) -> None:
    replace(own_isic / table, old, new)
    with pytest.raises(StartupError, match=says):
        datasets.read(own_isic)


def test_two_files_for_one_id_are_refused(own_isic: Path) -> None:
    image = own_isic / "isic2020/train/ISIC_9000000.jpg"
    (image.parent / "more").mkdir()
    (image.parent / "more" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(StartupError, match="ISIC_9000000 is ambiguous"):
        datasets.read(own_isic)


def test_a_folder_without_isic_tables_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"GroundTruth\.csv"):
        datasets.read(tmp_path)


def edit(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    write(path, rows)  # type: ignore[arg-type]


def test_the_kaggle_layout_has_folds_and_leaves_marked_duplicates_out(own_isic: Path) -> None:
    def fold(row: dict[str, str]) -> None:
        number = int(row["image_name"].removeprefix("ISIC_")) - 9_000_000
        row |= {"tfrecord": "-1" if number == 4 else str(number // 3 % 5), "width": "6000", "height": "4000"}

    edit(own_isic / "isic2020/train.csv", fold)
    (own_isic / "isic2020/train/ISIC_9000004.jpg").unlink()
    dataset = datasets.read(own_isic)
    records = {record.name: record for record in dataset.records}
    assert "ISIC_9000004" not in records
    assert (records["ISIC_9000003"].fold, records["ISIC_9000017"].fold, records["ISIC_0000000"].fold) == (1, 0, None)
    edit(own_isic / "isic2020/train.csv", lambda row: row.update(tfrecord="-1") if row["tfrecord"] == "4" else None)
    assert any("6 images left out that tfrecord -1 marks" in note for note in datasets.read(own_isic).notes)


def test_isic_2019_in_the_kaggle_layout_is_read_by_its_codes(own_isic: Path) -> None:
    (own_isic / "isic2019/ISIC_2019_Training_GroundTruth.csv").unlink()
    rows = [
        {"image_name": "ISIC_0000000", "patient_id": -1, "diagnosis": "MEL", "target": 1, "tfrecord": 2},
        {"image_name": "ISIC_0000002", "patient_id": -1, "diagnosis": "SCC", "target": 0, "tfrecord": 3},
    ]
    write(own_isic / "isic2019/train.csv", rows)  # type: ignore[arg-type]
    records = {record.name: record for record in datasets.read(own_isic).records}
    assert (records["ISIC_0000000"].leaf, records["ISIC_0000002"].leaf) == ("MEL", "SCC")
    assert records["ISIC_0000000"].patient is None
    assert records["ISIC_0000002"].lesion == "HAM_1"
    (own_isic / "isic2019/ISIC_2019_Training_Metadata.csv").unlink()
    dataset = datasets.read(own_isic)
    sources = {record.name: record.source for record in dataset.records}
    assert (sources["ISIC_0000000"], sources["ISIC_0000002"]) == ("BCN20000", "ISIC2017")
    assert any("2 images of ISIC 2019 without lesion ids" in note for note in dataset.notes)


def test_the_second_version_of_2020_adds_lesions_to_the_first(own_isic: Path) -> None:
    first = own_isic / "isic2020/train.csv"
    second = own_isic / "isic2020/ISIC_2020_Training_GroundTruth_v2.csv"
    second.write_bytes(first.read_bytes())
    edit(second, lambda row: row.update(lesion_id=f"IL_{row['image_name'][-2:]}"))
    dataset = datasets.read(own_isic)
    assert len(dataset.records) == 116
    assert {record.lesion for record in dataset.records if record.dataset == "isic2020"} == {
        f"IL_{i:02d}" for i in range(36)
    }
    assert any("36 images stand in several tables" in note for note in dataset.notes)
    replace(second, "nevus,benign,0", "melanoma,malignant,1")
    with pytest.raises(StartupError, match="MEL in one table and NV in another"):
        datasets.read(own_isic)


def test_ham10000_is_read_alone_and_inside_isic_2019(own_isic: Path) -> None:
    table = own_isic / "isic2019/HAM10000_metadata.csv"
    rows = [
        {"lesion_id": "HAM_9", "image_id": f"ISIC_000000{i}", "dx": dx, "dx_type": "histo"}
        for i, dx in ((2, "bcc"), (4, "akiec"))
    ]
    write(table, rows)  # type: ignore[arg-type]
    dataset = datasets.read(own_isic)
    assert len(dataset.records) == 116
    assert any("no image that is not labelled by ISIC 2019" in note for note in dataset.notes)
    for path in (own_isic / "isic2019").glob("ISIC*.csv"):
        path.unlink()
    records = [record for record in datasets.read(own_isic).records if record.dataset == "ham10000"]
    assert [(record.name, record.leaf, record.source, record.lesion) for record in records] == [
        ("ISIC_0000002", "BCC", "HAM10000", "HAM_9"),
        ("ISIC_0000004", "AK", "HAM10000", "HAM_9"),
    ]
