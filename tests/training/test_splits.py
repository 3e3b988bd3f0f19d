import csv
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from dermserve.errors import StartupError
from tests.training.conftest import write
from training import datasets, splits
from training.data_commands import data
from training.datasets import Dataset, Record


def test_no_lesion_patient_or_duplicate_crosses(isic: Path) -> None:
    dataset = datasets.read(isic)
    for seed in range(5):
        result = splits.split(dataset, fraction=0.3, seed=seed)
        train = {record.name for record in result.train}
        assert len(result.train) + len(result.validation) == len(dataset.records)
        for key in ("lesion", "patient"):
            inside = {getattr(record, key) for record in result.train} - {None}
            assert not inside & {getattr(record, key) for record in result.validation}
        for first, second in (("ISIC_9000000", "ISIC_9000003"), ("ISIC_0000000", "ISIC_9000015")):
            assert (first in train) == (second in train)


def test_duplicates_join_whole_groups_across_years(isic: Path) -> None:
    groups = splits.groups(datasets.read(isic))
    # Lesion MSK4_0 and patient IP_5 are one group, because one image of each shows the same picture.
    assert (
        groups["ISIC_0000001_downsampled"] == groups["ISIC_0000000"] == groups["ISIC_9000015"] == groups["ISIC_9000017"]
    )
    assert groups["ISIC_9000001"] == groups["ISIC_9000005"]
    assert groups["ISIC_9000001"] != groups["ISIC_9000006"]


def test_parts_keep_the_share_of_every_leaf_and_source() -> None:
    leaves = ("MEL", "NV", "NV", "NV", "BCC")
    records = [
        Record(f"i{i}", Path(), leaves[i % 5], "isic2019", ("A", "B")[i % 2], lesion=f"l{i // 10}-{i % 5}")
        for i in range(2000)
    ]
    result = splits.split(Dataset(records), fraction=0.2)
    total = Counter((record.source, record.leaf) for record in records)
    held = Counter((record.source, record.leaf) for record in result.validation)
    assert set(held) == set(total)
    for stratum, count in total.items():
        assert held[stratum] / count == pytest.approx(0.2, abs=0.03)


def test_another_seed_divides_otherwise(isic: Path) -> None:
    dataset = datasets.read(isic)
    first, again, other = (splits.split(dataset, seed=seed).validation for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_folds_hold_each_image_once_evenly_and_no_group_crosses(isic: Path) -> None:
    dataset = datasets.read(isic)
    parts = splits.folds(dataset, 4, seed=1)
    names = [record.name for part in parts for record in part.validation]
    assert sorted(names) == sorted(record.name for record in dataset.records)
    for part in parts:
        assert len(part.train) + len(part.validation) == len(dataset.records)
        sides = [{part.groups[record.name] for record in side} for side in (part.train, part.validation)]
        assert not sides[0] & sides[1]
        counts = Counter(record.source for record in part.validation)
        assert counts["HAM10000"] == pytest.approx(10, abs=4)
        assert any(record.leaf == "MEL" for record in part.validation)


def test_tfrecords_make_the_folds_and_may_not_disagree_within_a_patient() -> None:
    records = [
        Record(f"i{i}", Path(), "NV", "isic2020", "A", patient=f"p{i // 3}", fold=i // 3 % 15) for i in range(90)
    ]
    for number, part in enumerate(splits.folds(Dataset(records), 5)):
        assert {record.fold for record in part.validation} == {number, number + 5, number + 10}
    wrong = [*records[:-1], Record("i89", Path(), "NV", "isic2020", "A", patient="p29", fold=3)]
    with pytest.raises(StartupError, match=r"put 1 groups .* into several folds, for example i89"):
        splits.folds(Dataset(wrong), 5)


def picture(name: str, patient: str, fold: int | None = None) -> Record:
    return Record(name, Path(), "NV", "isic2020", "A", patient=patient, fold=fold)


def test_listed_pairs_join_groups_whatever_their_ids_look_like_and_through_images_that_are_absent() -> None:
    records = [picture(f"i{i}", f"p{i}") for i in range(6)] + [picture("i6_downsampled", "p6")]
    pairs = [("i0_downsampled", "i6"), ("i1", "gone"), ("gone_downsampled", "i2"), ("i3", "m"), ("i5", "nobody")]
    groups = splits.groups(Dataset(records, pairs, marked=[picture("m", "p4", -1)]))
    assert groups["i0"] == groups["i6_downsampled"]
    assert groups["i1"] == groups["i2"]
    assert groups["i3"] == groups["i4"], "the marked image is of the patient of i4 and shows what i3 shows"
    assert len(set(groups.values())) == 4
    assert set(groups.values()) <= set(groups), "groups are named after images that are there"


def test_marked_duplicates_of_a_folder_still_join_patients(own_isic: Path) -> None:
    table = own_isic / "isic2020/train.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["tfrecord"] = "-1" if row["image_name"] == "ISIC_9000003" else str(int(row["patient_id"][3:]) % 4)
    write(table, rows)  # type: ignore[arg-type]
    for absent in (False, True):
        if absent:
            (own_isic / "isic2020/train/ISIC_9000003.jpg").unlink()
        dataset = datasets.read(own_isic)
        groups = splits.groups(dataset)
        assert "ISIC_9000003" not in groups
        assert groups["ISIC_9000001"] == groups["ISIC_9000004"]
        # Patients 0 and 1 have different tfrecords, but only the marked image joins them: they go together.
        for part in splits.folds(dataset, 4):
            validation = {record.name for record in part.validation}
            assert len(validation & {"ISIC_9000001", "ISIC_9000004"}) != 1


def test_a_written_fold_is_read_again(isic: Path, tmp_path: Path) -> None:
    table = tmp_path / "new/fold.csv"
    result = CliRunner().invoke(data, ["split", str(isic), "--folds", "3", "--fold", "2", "--out", str(table)])
    assert result.exit_code == 0, result.output
    dataset = datasets.read(isic)
    again, expected = splits.split(dataset, given=table), splits.folds(dataset, 3)[2]
    assert again.validation == expected.validation
    assert again.train == expected.train


def given(path: Path, dataset: Dataset, part: dict[str, str]) -> Path:
    lines = ["image,dataset,collection,group_id,split"]
    lines += [
        f"{r.name},,,{r.lesion or r.patient},{part.get(r.lesion or r.patient or '', 'train')}" for r in dataset.records
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_given_table_wins(isic: Path, tmp_path: Path) -> None:
    dataset = datasets.read(isic)
    table = given(tmp_path / "splits.csv", dataset, {"HAM_1": "val", "IP_7": "val", "IP_8": "test"})
    result = splits.split(dataset, given=table)
    assert {record.lesion or record.patient for record in result.validation} == {"HAM_1", "IP_7"}
    assert "IP_8" not in {record.patient for record in result.train}


def test_a_given_table_that_lets_a_group_cross_is_refused(isic: Path, tmp_path: Path) -> None:
    dataset = datasets.read(isic)
    # IP_0 and IP_1 hold the same picture, which only the duplicates list tells.
    table = given(tmp_path / "splits.csv", dataset, {"IP_1": "val"})
    with pytest.raises(StartupError, match="into both training and validation"):
        splits.split(dataset, given=table)


def test_a_given_table_that_leaves_an_image_out_is_refused(isic: Path, tmp_path: Path) -> None:
    dataset = datasets.read(isic)
    table = given(tmp_path / "splits.csv", Dataset(dataset.records[1:]), {"IP_7": "val"})
    with pytest.raises(StartupError, match="no row for 1 labelled images, for example ISIC_0000000"):
        splits.split(dataset, given=table)


def test_ids_of_a_given_table_match_without_suffix_and_blank_groups_stand_alone(isic: Path, tmp_path: Path) -> None:
    dataset, table = datasets.read(isic), tmp_path / "splits.csv"
    lines = [
        f"{r.name.removesuffix('_downsampled')}, ,{'val' if r.patient == 'IP_7' else 'train'}" for r in dataset.records
    ]
    table.write_text("\n".join(["image,group_id,split", *lines]))
    result = splits.split(dataset, given=table)
    assert {record.patient for record in result.validation} == {"IP_7"}
    assert len(result.train) == len(dataset.records) - 3
    assert len(set(result.groups.values())) == len(set(splits.groups(dataset).values()))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("IP_7,val", "IP_7,vall", "split of ISIC_9000021 is 'vall', none of train, val and test"),
        ("group_id", "group", "lacks group_id"),
        ("ISIC_9000022,,,IP_7,val", "ISIC_9000021_downsampled,,,IP_7,train", "more than one row for ISIC_9000021"),
    ],
)
def test_a_faulty_given_table_is_refused(isic: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    dataset = datasets.read(isic)
    table = given(tmp_path / "splits.csv", dataset, {"IP_7": "val"})
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(StartupError, match=says):
        splits.split(dataset, given=table)
