import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from tests.training.conftest import write
from training import datasets, truth


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
        ("isic2019/ISIC_2019_Training_GroundTruth.csv", "ISIC_0000000,1.0", "ISIC_0000000,x", "MEL of .* is 'x'"),
        ("isic2019/ISIC_2019_Training_GroundTruth.csv", "ISIC_0000000,1.0", "ISIC_0000000,0.7", "MEL of .* is '0.7'"),
        ("isic2020/train.csv", "nevus,benign,0", "nevus,benign,", "target of .* is ''"),
        ("isic2020/train.csv", "nevus,benign,0", "nevus,benign,nan", "target of .* is 'nan'"),
        ("isic2020/train.csv", "nevus,benign,0", "nevus", r"train\.csv line \d+ is cut off"),
        ("isic2020/train.csv", "nevus,benign,0", "näevus,benign,0", r"train\.csv cannot be read as CSV in UTF-8"),
        ("isic2019/ISIC_2019_Training_Metadata.csv", "lesion_id", "lesion", r"no …Metadata\.csv with image,lesion_id"),
    ],
)
def test_a_faulty_table_is_refused_by_name(own_isic: Path, table: str, old: str, new: str, says: str) -> None:
    replace(own_isic / table, old, new)
    (own_isic / table).write_text((own_isic / table).read_text(), encoding="latin-1")  # only one case is not ASCII
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
    assert any(
        "7 images left out that tfrecord -1 marks as duplicates, 1 of them without a file" in note
        for note in datasets.read(own_isic).notes
    )


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
    assert any("2 images keep the label that ISIC 2019 gives them" in note for note in dataset.notes)
    for path in (own_isic / "isic2019").glob("ISIC*.csv"):
        path.unlink()
    records = [record for record in datasets.read(own_isic).records if record.dataset == "ham10000"]
    assert [(record.name, record.leaf, record.source, record.lesion) for record in records] == [
        ("ISIC_0000002", "BCC", "HAM10000", "HAM_9"),
        ("ISIC_0000004", "AK", "HAM10000", "HAM_9"),
    ]


def kaggle_2019(root: Path, count: int = 8) -> None:
    """ISIC 2019 as Kaggle has it, without its metadata."""
    for path in (root / "isic2019").glob("*.csv"):
        path.unlink()
    names = [image.stem for image in sorted((root / "isic2019").rglob("*.jpg"))[:count]]
    rows = [{"image_name": n, "patient_id": "-1", "diagnosis": "NV", "target": 0, "tfrecord": 1} for n in names]
    write(root / "isic2019/train.csv", rows)  # type: ignore[arg-type]


def test_ham10000s_table_gives_lesions_to_images_of_isic_2019_that_have_none(own_isic: Path) -> None:
    kaggle_2019(own_isic)
    rows = [{"lesion_id": "HAM_9", "image_id": f"ISIC_000000{i}", "dx": "nv"} for i in (0, 1)]
    write(own_isic / "elsewhere/HAM10000_metadata.csv", rows)  # type: ignore[arg-type]
    dataset = datasets.read(own_isic)
    records = [record for record in dataset.records if record.dataset == "isic2019"]
    assert [record.lesion for record in records] == ["HAM_9", "HAM_9", None, None, None, None, None, None]
    assert [record.source for record in records] == 2 * ["HAM10000"] + 6 * ["ISIC2017"]
    assert any("6 images of ISIC 2019 without lesion ids" in note for note in dataset.notes)
    replace(own_isic / "elsewhere/HAM10000_metadata.csv", "ISIC_0000000", "ISIC_0024306")
    with pytest.raises(StartupError, match=r"1 of the images in .*HAM10000.* have no image file: ISIC_0024306"):
        datasets.read(own_isic)


def test_metadata_of_several_tables_is_put_together_unless_it_disagrees(own_isic: Path) -> None:
    own = own_isic / "isic2019/ISIC_2019_Training_Metadata.csv"
    edit(
        own, lambda row: row.update(image=row["image"].removesuffix("_downsampled"), lesion_id=f" {row['lesion_id']} ")
    )
    edit(own, lambda row: row.update(lesion_id="NA") if row["image"] in {"ISIC_0000004", "ISIC_0000006"} else None)
    write(own_isic / "about/more.csv", [{"image": "ISIC_0000004", "lesion_id": "HAM_X"}])
    write(own_isic / "z/Metadata.csv", [{"image": "ISIC_0000002", "age_approx": 5}])
    dataset = datasets.read(own_isic)
    lesions = {record.name: record.lesion for record in dataset.records}
    assert lesions["ISIC_0000004"] == "HAM_X"
    assert lesions["ISIC_0000006"] is None
    assert lesions["ISIC_0000002"] == lesions["ISIC_0000003_downsampled"] == "HAM_1"
    assert any("z/Metadata.csv is not used for groups" in note for note in dataset.notes)
    write(own_isic / "about/more.csv", [{"image": "ISIC_0000002", "lesion_id": "HAM_X"}])
    with pytest.raises(StartupError, match="ISIC_0000002 is of lesion HAM_1, but another row says HAM_X"):
        datasets.read(own_isic)


@pytest.mark.parametrize("nothing", ["NA", "nan", "-1", ""])
def test_patients_that_are_not_known_are_no_patient(own_isic: Path, nothing: str) -> None:
    edit(own_isic / "isic2020/train.csv", lambda row: row.update(patient_id=f"{nothing} "))
    records = [record for record in datasets.read(own_isic).records if record.dataset == "isic2020"]
    assert len(records) == 36
    assert {record.patient for record in records} == {None}


@pytest.mark.parametrize(
    ("fold", "usable"), [("1.0", True), ("-2", False), ("1.5", False), ("inf", False), ("", False)]
)
def test_a_tfrecord_is_a_whole_number_of_minus_one_or_more(own_isic: Path, fold: str, usable: bool) -> None:
    edit(own_isic / "isic2020/train.csv", lambda row: row.update(tfrecord=fold))
    if usable:
        assert {record.fold for record in datasets.read(own_isic).records} == {1, None}
    else:
        with pytest.raises(StartupError, match=f"tfrecord of ISIC_9000000 is '{fold}', no whole number"):
            datasets.read(own_isic)


def test_upper_case_suffixes_and_linked_folders_are_read(own_isic: Path, tmp_path: Path) -> None:
    expected = [record.name for record in datasets.read(own_isic).records]
    table = own_isic / "isic2020/train.csv"
    table.rename(table.with_name("TRAIN.CSV"))
    (own_isic / "isic2020").rename(tmp_path / "archive")
    (own_isic / "isic2020").symlink_to(tmp_path / "archive")
    (tmp_path / "archive/again").symlink_to(tmp_path / "archive")
    (tmp_path / "archive/._train.csv").write_bytes(b"\xff\xfe\x00")
    assert [record.name for record in datasets.read(own_isic).records] == expected


def test_tables_that_are_not_used_are_named(own_isic: Path) -> None:
    header = (own_isic / "isic2020/train.csv").read_text().splitlines()[0]
    for name, text in (("semicolons", header.replace(",", ";")), ("no-rows", header), ("nothing", "")):
        (own_isic / f"{name}.csv").write_text(text)
    (own_isic / "patients.csv").write_bytes("id,name\n1,Jörg\n".encode("latin-1"))
    notes = "\n".join(datasets.read(own_isic).notes)
    assert "semicolons.csv is not used: its columns are none of the known layouts'" in notes
    assert "patients.csv is not used: its columns are none of the known layouts'" in notes
    assert "no-rows.csv is not used: it holds no rows" in notes
    assert "nothing.csv is not used: it is empty" in notes


def test_an_image_that_is_a_broken_link_or_a_folder_is_missing(own_isic: Path) -> None:
    for name in ("ISIC_9000000", "ISIC_9000001"):
        (own_isic / f"isic2020/train/{name}.jpg").unlink()
    (own_isic / "isic2020/train/ISIC_9000000.jpg").symlink_to("nowhere.jpg")
    (own_isic / "isic2020/train/ISIC_9000001.jpg").mkdir()
    with pytest.raises(StartupError, match=r"2 of the images in .* have no image file: ISIC_9000000, ISIC_9000001"):
        datasets.read(own_isic)


def test_test_sets_of_one_folder_name_and_files_of_one_stem_are_told_apart(tmp_path: Path) -> None:
    for clinic in ("a", "b"):
        write(tmp_path / clinic / "test/labels.csv", [{"image": "X_1", "melanoma": 1, "lesion_id": "NA"}])
        (tmp_path / clinic / "test/X_1_downsampled.jpg").touch()
    write(tmp_path / "other/LABELS.CSV", [{"image": "X_2.jpg", "melanoma": 0}])
    (tmp_path / "other/X_2.JPG").touch()
    tests = truth.find_test_sets(tmp_path)
    assert [test.name for test in tests] == ["a-test", "b-test", "other"]
    assert [test.paths[0].name for test in tests] == ["X_1_downsampled.jpg", "X_1_downsampled.jpg", "X_2.JPG"]
    assert tests[0].labels.groups == {"X_1": "X_1"}
    (tmp_path / "other").rename(tmp_path / "val")
    with pytest.raises(StartupError, match="the validation images are called so"):
        truth.find_test_sets(tmp_path)
    (tmp_path / "val").rename(tmp_path / "other")
    (tmp_path / "other/X_2.png").touch()
    with pytest.raises(StartupError, match="X_2 is ambiguous"):
        truth.find_test_sets(tmp_path)
    (tmp_path / "other/LABELS.CSV").write_text("image,melanoma\nX_3,1\n")
    with pytest.raises(StartupError, match="have no image file: X_3"):
        truth.find_test_sets(tmp_path)
