"""Faults planted in a small folder of every layout; each test plants one, and the report must name it and no other."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from imagehash import phash
from PIL import Image

from dermserve.errors import StartupError
from tests.training.conftest import CODES, write
from training import datasets, splits
from training.check import likeness, official, tables
from training.check.findings import CODES as FINDINGS
from training.check.findings import Finding, Report
from training.check.folder import below
from training.check.run import check
from training.data_commands import data

IMAGES, TRUTH = "isic2019/ISIC_2019_Training_Input", "isic2019/ISIC_2019_Training_GroundTruth.csv"
METADATA = "isic2019/ISIC_2019_Training_Metadata.csv"


def picture(seed: int, side: int = 96) -> Image.Image:
    """Smooth noise: no two seeds look alike, and scaling or compressing changes little."""
    rough = np.random.default_rng(seed).integers(40, 230, (6, 6, 3), np.uint8)
    return Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, quality=92)


def name_2019(i: int) -> str:
    return f"ISIC_00{i:05d}" + ("_downsampled" if i % 5 == 0 else "")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ISIC 2019 (12 lesions of two images), ISIC 2020 (6 patients of two), a test set of six, splits.csv."""
    root = tmp_path_factory.mktemp("check")
    truth, about, rows, parts = [], [], [], []
    for i in range(24):
        code, lesion = CODES[i // 2 % 8], f"HAM_{i // 2:03d}"
        truth.append({"image": name_2019(i)} | {other: float(other == code) for other in CODES})
        site = ("anterior torso", "")[i % 2]
        about.append(
            {"image": name_2019(i), "age_approx": 50, "anatom_site_general": site, "lesion_id": lesion, "sex": "male"}
        )
        parts.append({"image": name_2019(i), "group_id": lesion, "split": "val" if i < 6 else "train"})
        save(root / IMAGES / f"{name_2019(i)}.jpg", i)
    for i in range(12):
        name, diagnosis = f"ISIC_90{i:05d}", ("melanoma", "nevus", "unknown")[i % 3]
        kind = "malignant" if diagnosis == "melanoma" else "benign"
        rows.append(
            {
                "image_name": name,
                "patient_id": f"IP_{i // 2}",
                "sex": "female",
                "age_approx": "45.0",
                "anatom_site_general_challenge": "torso",
                "diagnosis": diagnosis,
                "benign_malignant": kind,
                "target": int(diagnosis == "melanoma"),
            }
        )
        parts.append({"image": name, "group_id": f"IP_{i // 2}", "split": "val" if i < 4 else "train"})
        save(root / f"isic2020/train/{name}.jpg", 100 + i)
    write(root / TRUTH, truth)
    write(root / METADATA, about)
    write(root / "isic2020/train.csv", rows)
    pairs = [{"image_name_1": "ISIC_1111111", "image_name_2": "ISIC_2222222"}]
    write(root / "isic2020/ISIC_2020_Training_Duplicates.csv", pairs)
    write(root / "splits.csv", parts)
    write(root / "test/labels.csv", [{"image": f"ISIC_80{i:05d}", "melanoma": i % 2} for i in range(6)])
    for i in range(6):
        save(root / f"test/images/ISIC_80{i:05d}.jpg", 200 + i)
    return root


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of `clean` to plant a fault in."""
    return shutil.copytree(clean, tmp_path / "isic")


def found(root: Path, **options: object) -> list[Finding]:
    """Findings but for the note that these images are small."""
    report = check(root, fingerprints=options.pop("fingerprints", {}), **options)  # type: ignore[arg-type]
    return [finding for finding in report.findings if finding.code != "images_enlarged"]


def codes(root: Path, **options: object) -> set[str]:
    return {finding.code for finding in found(root, **options)}


def change(path: Path, *edits: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def edit(path: Path, change_row: Callable[[dict[str, str]], None]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change_row(row)
    write(path, rows)  # type: ignore[arg-type]


def test_a_clean_folder_has_nothing_but_its_small_images(folder: Path) -> None:
    report = check(folder, fingerprints={})
    assert {finding.code for finding in report.findings} == {"images_enlarged"}
    assert (report.errors, report.facts["label rows"], report.facts["image files"]) == (0, 42, 42)


def test_a_missing_and_a_truncated_and_an_unlabelled_image_are_named(folder: Path) -> None:
    (folder / IMAGES / "ISIC_0000007.jpg").unlink()
    damaged = folder / "isic2020/train/ISIC_9000003.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    save(folder / "test/images/ISIC_8999999.jpg", 300)
    (folder / "test/images/ISIC_8000002.jpg").write_bytes(b"GIF89a, not a JPEG")
    assert {(finding.code, Path(finding.files[0]).stem) for finding in found(folder)} == {
        ("image_missing", "ISIC_0000007"),
        ("image_undecodable", "ISIC_9000003"),
        ("label_missing", "ISIC_8999999"),
        ("unsupported_media_type", "ISIC_8000002"),
    }


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda image: image, "duplicate_file"),
        (lambda image: image.resize((70, 60)), "near_duplicate"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), "near_duplicate"),
        (lambda image: image.transpose(Image.Transpose.TRANSVERSE), "near_duplicate"),
    ],
)
def test_a_picture_under_another_name_is_found(
    folder: Path, make: Callable[[Image.Image], Image.Image], code: str
) -> None:
    source, target = folder / IMAGES / "ISIC_0000003.jpg", folder / "isic2020/train/ISIC_9999999.jpg"
    if code == "duplicate_file":
        target.write_bytes(source.read_bytes())
    else:
        make(Image.open(source)).save(target, quality=70)
    findings = {finding.code: finding for finding in found(folder)}
    assert set(findings) == {code, "label_missing"}
    assert {Path(file).stem for file in findings[code].files} == {"ISIC_0000003", "ISIC_9999999"}


def test_the_same_pixels_in_other_bytes_are_found_and_a_list_settles_it(folder: Path) -> None:
    source = folder / IMAGES / "ISIC_0000003.jpg"
    Image.open(source).save(folder / IMAGES / "ISIC_0000004.png")
    (folder / IMAGES / "ISIC_0000004.jpg").unlink()
    findings = found(folder)
    assert {"duplicate_pixels", "label_conflict_duplicate"} == {finding.code for finding in findings}
    change(folder / "isic2020/ISIC_2020_Training_Duplicates.csv", ("1111111", "0000003"), ("2222222", "0000004"))
    assert codes(folder) == {
        "duplicate_known",
        "label_conflict_duplicate",
    }


def test_a_duplicate_on_both_sides_is_a_crossing(folder: Path) -> None:
    # ISIC_0000004 validates, ISIC_0000020_downsampled trains, and both are BCC.
    (folder / IMAGES / "ISIC_0000020_downsampled.jpg").write_bytes((folder / IMAGES / "ISIC_0000004.jpg").read_bytes())
    assert codes(folder) == {"duplicate_file", "group_crosses"}
    picture(4).resize((80, 80)).save(folder / IMAGES / "ISIC_0000020_downsampled.jpg", quality=80)
    assert codes(folder) == {"near_duplicate", "group_crosses_similar"}


def test_swapped_labels_are_told_by_the_official_fingerprints(folder: Path) -> None:
    data_ = official.fingerprints(tables.read(below(folder, Report(folder)), Report(folder)).entries)
    prints = {data_[i : i + 5]: data_[i + 5 : i + 7] for i in range(0, len(data_), 7)}
    assert codes(folder, fingerprints=prints) == set()
    # Whole rows but for the names: NV ↔ BCC among lesions of two images, melanoma ↔ nevus, 0 ↔ 1.
    edit(folder / TRUTH, lambda row: row.update(NV=row["BCC"], BCC=row["NV"]) if row["image"] in NV_AND_BCC else None)
    change(folder / "test/labels.csv", ("ISIC_8000000,0", "ISIC_8000000,1"), ("ISIC_8000001,1", "ISIC_8000001,0"))
    swapped = {"ISIC_9000000": ("nevus", "benign", "0"), "ISIC_9000001": ("melanoma", "malignant", "1")}

    def swap(row: dict[str, str]) -> None:
        if row["image_name"] in swapped:
            row["diagnosis"], row["benign_malignant"], row["target"] = swapped[row["image_name"]]

    edit(folder / "isic2020/train.csv", swap)
    findings = [finding for finding in found(folder, fingerprints=prints) if finding.code == "label_not_official"]
    assert {Path(finding.files[0]).stem for finding in findings} == NV_AND_BCC | set(swapped) | {
        "ISIC_8000000",
        "ISIC_8000001",
    }
    details = {Path(finding.files[0]).stem: finding.detail for finding in findings}
    assert "BCC, officially NV; as if swapped with ISIC_0000004" in details["ISIC_0000003"]
    assert "melanoma, officially nevus; as if swapped with ISIC_9000000" in details["ISIC_9000001"]


NV_AND_BCC = {"ISIC_0000003", "ISIC_0000004"}


def test_swapped_labels_are_told_by_the_lesions_alone(folder: Path) -> None:
    edit(folder / TRUTH, lambda row: row.update(NV=row["BCC"], BCC=row["NV"]) if row["image"] in NV_AND_BCC else None)
    findings = found(folder)
    assert [finding.code for finding in findings] == ["label_conflict_lesion", "label_conflict_lesion"]
    assert "lesion HAM_001: ISIC_0000002 NV, ISIC_0000003 BCC" in findings[0].detail


def test_the_committed_fingerprints_know_public_labels(folder: Path) -> None:
    assert len(official.load()) == 13_776
    # ISIC_0000000 and …1 are nevi of ISIC 2017; the folder calls them melanomas.
    findings = [f for f in found(folder, fingerprints=official.load()) if f.code == "label_not_official"]
    assert any("ISIC_0000001" in f.files[0] and "MEL, officially NV" in f.detail for f in findings)


@pytest.mark.parametrize(
    ("table", "edits", "expected"),
    [
        ("splits.csv", [("ISIC_0000003,HAM_001,val", "ISIC_0000003,HAM_001,train")], {"group_crosses"}),
        (
            "splits.csv",
            [("ISIC_0000003,HAM_001,val", "ISIC_0000003,other,train")],
            {"group_crosses", "split_group_differs"},
        ),
        ("splits.csv", [("ISIC_9000003,IP_1,val", "ISIC_9000003,IP_1,test")], {"group_crosses"}),
        ("splits.csv", [("ISIC_0000003,HAM_001,val\n", "")], {"split_missing"}),
        ("splits.csv", [("ISIC_0000003,HAM_001,val", "ISIC_0000003,HAM_001,vall")], {"group_crosses", "split_unknown"}),
        (TRUTH, [("ISIC_0000007,0.0,0.0,0.0,1.0", "ISIC_0000007,0.0,1.0,0.0,1.0")], {"label_classes"}),
        (
            TRUTH,
            [("ISIC_0000007,", "ISIC_0000006,")],
            {"label_row_repeated", "label_missing", "split_without_label", "metadata_without_label"},
        ),
        (METADATA, [("ISIC_0000003,50", "ISIC_0000003,500")], {"metadata_invalid", "metadata_differs"}),
        (
            METADATA,
            [("ISIC_0000003,50,,HAM_001,male", "ISIC_0000003,50,,HAM_001,mael")],
            {"metadata_invalid", "metadata_differs"},
        ),
        (METADATA, [("ISIC_0000003,50,,", "ISIC_0000003,50,elbow,")], {"metadata_invalid"}),
        ("isic2020/train.csv", [("ISIC_9000002,IP_1", "ISIC_9000002,IP_0")], {"split_group_differs"}),
        ("test/labels.csv", [("ISIC_8000000,0", "ISIC_8000000,0.5")], {"label_classes"}),
    ],
)
def test_faulty_rows(folder: Path, table: str, edits: list[tuple[str, str]], expected: set[str]) -> None:
    change(folder / table, *edits)
    assert codes(folder) == expected


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("target", "0", "label_contradicts_target"),
        ("diagnosis", "wart", "label_unknown"),
        ("target", "?", "label_classes"),
        ("tfrecord", "nan", "fold_invalid"),
    ],
)
def test_faulty_rows_of_2020(folder: Path, column: str, value: str, expected: str) -> None:
    edit(
        folder / "isic2020/train.csv",
        lambda row: row.update({column: value}) if row["image_name"] == "ISIC_9000000" else None,
    )
    assert expected in codes(folder)


def test_kaggle_folds_are_checked_and_marked_duplicates_noted(folder: Path) -> None:
    folds = iter([0, 0, 1, 1, 2, 2, 0, 0, 1, 2, -1, 2])
    edit(folder / "isic2020/train.csv", lambda row: row.update(tfrecord=str(next(folds))))
    findings = found(folder)
    assert {finding.code for finding in findings} == {"group_crosses", "duplicate_marked"} | {"split_without_label"}
    crossing = next(finding for finding in findings if finding.code == "group_crosses")
    assert "patient IP_4 – tfrecord 1: ISIC_9000008; tfrecord 2: ISIC_9000009" in crossing.detail


def test_only_the_division_at_the_top_counts(folder: Path) -> None:
    (folder / "isic2019/fold-0.csv").write_text("image,group_id,split\nISIC_0000003,HAM_001,train\n")
    assert codes(folder) == {"table_unknown"}


def test_a_jpeg_without_its_end_is_damaged(folder: Path) -> None:
    path = folder / IMAGES / "ISIC_0000003.jpg"
    path.write_bytes(path.read_bytes()[:-2])
    assert codes(folder) == {"image_undecodable"}


def test_ham10000_is_compared_with_isic2019(folder: Path) -> None:
    dx = {
        "MEL": "mel",
        "NV": "nv",
        "BCC": "bcc",
        "AK": "akiec",
        "BKL": "bkl",
        "DF": "df",
        "VASC": "vasc",
        "SCC": "akiec",
    }
    rows = [
        {
            "lesion_id": f"HAM_{i // 2:03d}",
            "image_id": name_2019(i).removesuffix("_downsampled"),
            "dx": dx[CODES[i // 2 % 8]],
        }
        for i in range(24)
    ]
    write(folder / "isic2019/HAM10000_metadata", rows)
    assert codes(folder) == {"labelled_twice"}
    rows[3]["dx"] = "mel"
    write(folder / "isic2019/HAM10000_metadata", rows)
    findings = [finding for finding in found(folder) if finding.severity == "error"]
    assert [finding.code for finding in findings] == ["label_conflict_tables"]
    assert findings[0].files == ("ISIC_0000003",)


def test_a_test_image_among_the_training_images_is_found(folder: Path) -> None:
    change(folder / "test/labels.csv", ("ISIC_8000000,0", "ISIC_0000002,0"))
    assert {"test_image_in_training", "group_crosses"} <= codes(folder)


@pytest.mark.parametrize("column", ["lesion_id", "patient_id", "group_id"])
def test_leaks_into_a_test_set_are_found_without_a_splits_csv(folder: Path, column: str) -> None:
    (folder / "splits.csv").unlink()
    assert codes(folder) == set()
    shared = "IP_1" if column == "patient_id" else "HAM_001"
    edit(folder / "test/labels.csv", lambda row: row.update({column: {"ISIC_8000002": shared}.get(row["image"], "")}))
    assert codes(folder) == {"group_crosses"}


def test_a_test_picture_among_the_training_pictures_is_found_without_a_splits_csv(folder: Path) -> None:
    (folder / "splits.csv").unlink()
    picture(202).resize((80, 80)).save(folder / IMAGES / "ISIC_0000003.jpg", quality=80)
    assert codes(folder) == {"near_duplicate", "group_crosses_similar"}
    duplicates = "isic2020/ISIC_2020_Training_Duplicates.csv"
    change(folder / duplicates, ("1111111", "0000003"), ("2222222", "8000002"))
    assert codes(folder) == {"duplicate_known", "group_crosses"}
    # Training leaves out what has no leaf.
    edit(folder / TRUTH, lambda row: row.update(NV="0.0", UNK="1.0") if row["NV"] == "1.0" else None)
    assert codes(folder) == {"duplicate_known", "label_unusable"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda text: "", {"table_empty"}),
        (lambda text: text.splitlines()[0], {"table_empty"}),
        (lambda text: text.replace(",", ";"), {"table_incomplete"}),
        (lambda text: text.replace("diagnosis", "dx", 1), {"table_incomplete"}),
        (lambda text: text.replace("image_name", "id", 1).replace("target", "y", 1), {"table_incomplete"}),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "TRAIN.CSV"])
def test_a_set_whose_table_is_of_no_use_is_an_error(
    folder: Path, name: str, content: Callable[[str], str], expected: set[str]
) -> None:
    (folder / "splits.csv").unlink()
    table = (folder / "isic2020/train.csv").rename(folder / "isic2020" / name)
    assert codes(folder) == set()
    table.write_text(content(table.read_text()))
    findings = [finding for finding in found(folder) if finding.code != "image_unlisted"]
    assert {finding.code for finding in findings} == expected
    assert {finding.severity for finding in findings} == {"error"}
    assert findings[0].files == (f"isic2020/{name}",)


def test_a_set_that_only_an_unknown_table_names_is_an_error_unless_it_has_no_labels(folder: Path) -> None:
    (folder / "splits.csv").unlink()
    table = folder / "isic2020/train.csv"
    rows = table.read_text().splitlines()[1:]
    table.rename(folder / "isic2020/own.csv").write_text("\n".join(["a,b,c,d,e,f,g,h", *rows]))
    findings = [finding for finding in found(folder) if finding.severity == "error"]
    assert [(finding.code, finding.files) for finding in findings] == [("images_unused", ("isic2020/own.csv",))]
    assert "12 images" in findings[0].detail
    # Kaggle's test.csv
    write(folder / "isic2020/own.csv", [{"image_name": row.split(",")[0], "patient_id": "IP_9"} for row in rows])
    assert codes(folder) == {"table_unknown", "image_unlisted"}


def test_a_written_list_without_pairs_may_lie_in_the_folder(folder: Path) -> None:
    (folder / "pairs.csv").write_text("image_name_1,image_name_2\n")
    assert codes(folder) == set()


def test_linked_folders_are_looked_into_once(folder: Path, tmp_path: Path) -> None:
    (folder / "isic2020").rename(tmp_path / "elsewhere")
    (folder / "isic2020").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(folder)
    assert codes(folder) == set()
    (tmp_path / "elsewhere/train/ISIC_9000003.jpg").unlink()
    assert codes(folder) == {"image_missing"}


@pytest.mark.parametrize("name", ["ISIC_2019.csv", "../Metadata.csv"])
def test_metadata_is_known_by_its_columns_wherever_it_lies(folder: Path, name: str) -> None:
    (folder / METADATA).rename((folder / METADATA).parent / name)
    assert codes(folder) == set()
    ((folder / METADATA).parent / name).unlink()
    assert codes(folder) - {"split_group_differs"} == {"metadata_missing"}


def test_metadata_must_tell_lesions_once_and_alike(folder: Path) -> None:
    second = folder / "isic2019/More_Metadata.csv"
    rows = list(csv.DictReader((folder / METADATA).open(newline="")))
    write(second, [{key: row[key] for key in ("image", "age_approx", "sex")} for row in rows])
    assert codes(folder) == set()
    second.write_text("image,lesion_id\nISIC_0000003,HAM_001\nISIC_0000007,HAM_009\n")
    differing = [finding for finding in found(folder) if finding.severity == "error"]
    assert [(finding.code, finding.files) for finding in differing] == [("metadata_row_repeated", ("ISIC_0000007",))]
    assert (
        "lesion_id 'HAM_003' in ISIC_2019_Training_Metadata.csv line 9; 'HAM_009' in More_Metad" in differing[0].detail
    )
    second.unlink()
    change(folder / METADATA, ("lesion_id", "lesion"))
    assert codes(folder) == {"lesions_missing"}


def test_ham10000_without_its_images_is_an_error_where_isic2019_does_not_stand_in(folder: Path) -> None:
    rows = [{"lesion_id": f"HAM_9{i}", "image_id": f"ISIC_003000{i}", "dx": "nv", "sex": "unknown"} for i in range(3)]
    write(folder / "ham/HAM10000_metadata", rows)
    findings = found(folder)
    assert [finding.code for finding in findings if finding.severity == "error"] == ["image_missing"] * 3
    assert "metadata_invalid" not in {finding.code for finding in findings}


def test_labels_of_a_test_set_may_name_files_and_two_sets_may_share_a_name(folder: Path) -> None:
    edit(folder / "test/labels.csv", lambda row: row.update(image=f"images/{row['image']}.jpg"))
    shutil.copytree(folder / "test", folder / "other/test")
    for path in (folder / "other/test/images").iterdir():
        save(path.with_name(path.name.replace("_80", "_81")), int(path.stem[-1]) + 400)
        path.unlink()
    edit(folder / "other/test/labels.csv", lambda row: row.update(image=row["image"].replace("_80", "_81")))
    assert codes(folder) == set()
    shutil.copy(folder / "test/images/ISIC_8000001.jpg", folder / "other/test/images/ISIC_8100001.jpg")
    crossing = next(finding for finding in found(folder) if finding.code == "group_crosses")
    assert "test set other/test: ISIC_8100001; test set test: ISIC_8000001" in crossing.detail


def test_every_two_of_three_equal_files_are_told_and_a_chain_of_pairs_settles_them(folder: Path) -> None:
    # ISIC_0000004 validates, ISIC_0000020_downsampled trains; the first of the three has no label.
    source = (folder / IMAGES / "ISIC_0000004.jpg").read_bytes()
    for name in ("ISIC_0000000a", "ISIC_0000020_downsampled"):
        (folder / IMAGES / f"{name}.jpg").write_bytes(source)
    findings = found(folder)
    pairs = {frozenset(Path(file).stem for file in f.files) for f in findings if f.code == "duplicate_file"}
    assert len(pairs) == 3
    assert "group_crosses" in {finding.code for finding in findings}
    chain = [("ISIC_0000000a", "ISIC_0000004"), ("ISIC_0000020_downsampled", "ISIC_0000000a")]
    write(folder / "pairs.csv", [{"image_name_1": first, "image_name_2": second} for first, second in chain])
    assert codes(folder) == {"duplicate_known", "label_missing", "group_crosses"}


def test_two_copies_of_a_set_are_ambiguous_as_they_are_to_training(folder: Path) -> None:
    shutil.copytree(folder / "isic2020", folder / "again")
    findings = [finding for finding in found(folder) if finding.severity == "error"]
    assert [finding.code for finding in findings] == ["image_ambiguous"] * 12
    assert findings[0].files == ("again/train/ISIC_9000000.jpg", "isic2020/train/ISIC_9000000.jpg")
    with pytest.raises(StartupError, match="ambiguous"):
        datasets.read(folder)


def test_a_name_that_is_not_utf8_is_reported(folder: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder / IMAGES) + b"/caf\xe9.jpg"))
    path.write_bytes(b"")
    for options in (["--report", str(tmp_path / "check.md")], ["--json", "--report", str(tmp_path / "check.json")]):
        result = CliRunner().invoke(data, ["check", str(folder), *options])
        assert isinstance(result.exception, SystemExit)
        assert "caf\\udce9.jpg" in Path(options[-1]).read_text().replace(r"\\", "\\")
        assert "caf\\udce9.jpg" in result.output


def test_a_folder_without_a_readable_image_is_reported(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    assert codes(folder) == {"image_empty"}


def test_the_command_writes_a_report_and_tells_errors_by_its_status(folder: Path, tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "out/check.json"
    (folder / IMAGES / "ISIC_0000007.jpg").unlink()
    # The folder's ids are official ones with other labels.
    allowed = ["--allow", "label_not_official"]
    result = run.invoke(data, ["check", str(folder), "--json", "--report", str(out), *allowed])
    assert result.exit_code == 1, result.output
    assert "image_missing" in result.output
    written = json.loads(out.read_text())
    assert written["errors"] == written["counts"]["image_missing"] == 1
    markdown = tmp_path / "check.md"
    arguments = ["check", str(folder), "--report", str(markdown), *allowed, "--allow", "image_missing"]
    assert run.invoke(data, arguments).exit_code == 0
    assert "- ISIC_0000007: " in markdown.read_text()
    assert run.invoke(data, ["check", str(folder), "--allow", "nonsense"]).exit_code == 2


def test_written_pairs_settle_what_was_found_and_join_groups(folder: Path, tmp_path: Path) -> None:
    # ISIC_0000020_downsampled and ISIC_0000004 are BCC of two lesions; both train.
    change(folder / "splits.csv", ("ISIC_0000004,HAM_002,val", "ISIC_0000004,HAM_002,train"))
    change(folder / "splits.csv", ("ISIC_0000005_downsampled,HAM_002,val", "ISIC_0000005_downsampled,HAM_002,train"))
    picture(4).resize((80, 80)).save(folder / IMAGES / "ISIC_0000020_downsampled.jpg", quality=80)
    pairs = folder / "pairs.csv"
    arguments = ["check", str(folder), "--pairs", str(pairs), "--report", str(tmp_path / "check.md")]
    assert "1 pairs are in" in CliRunner().invoke(data, arguments).output
    assert codes(folder) == {"duplicate_known"}
    of = splits.groups(datasets.read(folder))
    assert of["ISIC_0000020_downsampled"] == of["ISIC_0000005_downsampled"]


def test_every_error_of_an_image_has_a_code_here() -> None:
    from dermserve import errors

    codes = {cls.code for cls in errors._subclasses(errors.ImageError).values()}
    of_doors = {code for code in codes if code.startswith("dicom_")}  # what reads pixels alone meets none of them
    assert codes - of_doors <= set(FINDINGS)


def test_the_signs_are_those_of_a_perceptual_hash() -> None:
    """imagehash's pHash compares with the median, here it is zero: for real pictures nearly the same bits."""
    thumbnails = np.stack([np.asarray(picture(i, 32).convert("L")) for i in range(20)])
    ours = likeness._signs(thumbnails)
    theirs = np.stack([phash(Image.fromarray(t)).hash.reshape(-1)[1:] for t in thumbnails])
    assert ((ours > 0) == theirs).mean() > 0.9


def test_recompressed_copies_are_alike_and_others_are_not() -> None:
    first = [np.asarray(picture(i).convert("L").resize((32, 32))) for i in range(60)]
    again = []
    for i in range(60):
        buffer = io.BytesIO()
        picture(i).save(buffer, "JPEG", quality=40)
        again.append(np.asarray(Image.open(buffer).convert("L").resize((32, 32))))
    pairs = {(i, j) for i, j, _ in likeness.pairs(np.stack(first + again))}
    expected = {(i, i + 60) for i in range(60)}
    assert pairs <= expected
    assert len(pairs) >= 57  # at this quality a picture without contrast may lose a sign too many
