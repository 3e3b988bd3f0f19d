from collections import Counter
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
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
