from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import write
from training import truth
from training.report import subgroups
from training.report.subgroups import Subject


def test_both_years_tables_are_read_under_one_vocabulary(tmp_path: Path) -> None:
    write(
        tmp_path / "2019/ISIC_2019_Training_Metadata.csv",
        [
            {
                "image": "ISIC_1_downsampled",
                "age_approx": "55",
                "anatom_site_general": "anterior torso",
                "sex": "female",
            },
            {"image": "ISIC_2", "age_approx": "", "anatom_site_general": "", "sex": ""},
            {"image": "ISIC_3", "age_approx": "80.0", "anatom_site_general": "head/neck", "sex": "male"},
        ],
    )
    write(
        tmp_path / "2020/train.csv",
        [{"image_name": "ISIC_4", "sex": "male", "age_approx": "29.0", "anatom_site_general_challenge": "torso"}],
    )
    write(tmp_path / "splits.csv", [{"image": "ISIC_1", "split": "val"}])
    (tmp_path / "empty.csv").write_text("image,sex\n")
    found = subgroups.read(tmp_path)
    assert found == {
        "ISIC_1": Subject("female", "45 to 59", "torso"),
        "ISIC_2": Subject(),
        "ISIC_3": Subject("male", "75 and over", "head/neck"),
        "ISIC_4": Subject("male", "under 30", "torso"),
    }
    images = [tmp_path / "2019/ISIC_2019_Training_Input/ISIC_1.jpg", tmp_path / "2020/train/ISIC_4.jpg"]
    assert subgroups.read_around(images) == found
    assert subgroups.read(tmp_path / "2020/train.csv") == {"ISIC_4": found["ISIC_4"]}
    # Ids are matched with and without `_downsampled`, bands stand by age, what is unknown stands last.
    members = subgroups.members(["ISIC_3", "ISIC_1_downsampled", "ISIC_9", "ISIC_4"], found)
    assert list(members) == ["sex", "age", "site"]
    assert list(members["age"]) == ["under 30", "45 to 59", "75 and over", "unknown"]
    assert members["site"]["torso"].tolist() == [1, 3]
    assert members["sex"]["unknown"].tolist() == [2]
    assert subgroups.members(["ISIC_9"], found) == {}


def test_a_subgroup_needs_ten_of_each() -> None:
    assert subgroups.too_small(np.arange(100) < 9)
    assert subgroups.too_small(np.arange(100) < 91)
    assert not subgroups.too_small(np.arange(100) < 10)


@pytest.mark.parametrize(
    ("columns", "rows", "together"),
    [
        (("lesion_id",), [("L1",), ("L1",), ("",), ("",)], ["AB", "C", "D"]),
        (("patient_id",), [("P1",), ("-1",), ("P1",), ("-1",)], ["AC", "B", "D"]),
        (("lesion_id", "patient_id"), [("L1", "P1"), ("L2", "P1"), ("L2", ""), ("", "-1")], ["ABC", "D"]),
        (("lesion_id", "patient_id"), [("7", "8"), ("8", "7"), ("", "-1"), ("", "-1")], ["A", "B", "C", "D"]),
        (
            ("group_id", "patient_id", "lesion_id"),
            [("G", "P1", ""), ("", "P2", "L"), ("G", "", "L"), ("H", "", "")],
            ["ABC", "D"],
        ),
    ],
    ids=["lesion", "patient", "lesions of one patient", "ids of other columns", "three columns"],
)
def test_images_that_share_a_lesion_or_a_patient_are_resampled_together(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], together: list[str], tmp_path: Path
) -> None:
    table: list[dict[str, object]] = [
        {"image": name, "melanoma": 0} | dict(zip(columns, row, strict=True))
        for name, row in zip("ABCD", rows, strict=True)
    ]
    for order in (table, table[::-1]):
        groups = truth.read_labels(write(tmp_path / "labels.csv", order)).groups
        found: dict[str, str] = {}
        for name, group in sorted(groups.items()):
            found[group] = found.get(group, "") + name
        assert sorted(found.values()) == together
