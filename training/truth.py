"""Melanoma or not, read from a table of labels: a test set's, ISIC 2019's ground truth or ISIC 2020's train.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from dermserve.errors import StartupError

_IMAGES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
_COLUMNS = (("image", "melanoma"), ("image", "MEL"), ("image_name", "target"))
_GROUPS = ("group_id", "lesion_id", "patient_id")


@dataclass(frozen=True)
class Labels:
    """`melanoma`: image stem → positive; `groups`: image stem → lesion, patient or, where unknown, the stem itself."""

    melanoma: dict[str, bool]
    groups: dict[str, str]


@dataclass(frozen=True)
class TestSet:
    """A labelled set that nothing is chosen on. `labels.melanoma` is in the order of `paths`."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    name: str
    paths: list[Path]
    labels: Labels


def stem(filename: str) -> str:
    """The image id in a file name or path: no folder, no image suffix (an id may hold dots of its own)."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = next((suffix for suffix in _IMAGES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def read_labels(path: Path) -> Labels:
    """Read `image,melanoma`, ISIC 2019's ground truth (`image,MEL,…`) or ISIC 2020's `image_name,…,target`.

    Groups for the intervals come from a column `group_id`, `lesion_id` or `patient_id`, or from ISIC 2019's
    `…Metadata.csv` beside the file.

    Raises:
        StartupError: the file is missing or empty, its columns are not known, an image stands in it twice, or a value
            is neither 0 nor 1.
    """
    rows = read_rows(path)
    columns = rows[0].keys()
    known = next((pair for pair in _COLUMNS if set(pair) <= columns), None)
    if known is None:
        wanted = " or ".join(",".join(pair) for pair in _COLUMNS)
        raise StartupError(f"{path} has the columns {','.join(columns)}; it needs {wanted}.")
    image, value = known
    group = next((column for column in _GROUPS if column in columns), None)
    lesions = _lesions_beside(path) if group is None else {}
    melanoma: dict[str, bool] = {}
    groups: dict[str, str] = {}
    for row in rows:
        name = stem(row[image])
        if name in melanoma:
            raise StartupError(f"{path} labels {name} more than once.")
        melanoma[name] = _positive(row[value], name, path)
        groups[name] = (row[group] if group else lesions.get(name)) or name
    return Labels(melanoma, groups)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        StartupError: the file is missing, or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from error
    if not rows:
        raise StartupError(f"{path} holds no rows.")
    return rows


def find_test_sets(root: Path) -> list[TestSet]:
    """Test sets below `root`: folders with a `labels.csv` (`image,melanoma`), named after the folder.

    Raises:
        StartupError: a labelled image is missing.
    """
    return [_test_set(path) for path in sorted(root.rglob("labels.csv"))]


def _test_set(table: Path) -> TestSet:
    labels = read_labels(table)
    images = {stem(path.name): path for path in table.parent.rglob("*") if path.suffix.lower() in _IMAGES}
    missing = [name for name in labels.melanoma if name not in images]
    if missing:
        raise StartupError(f"{len(missing)} of the images in {table} have no file, for example {missing[0]}.")
    return TestSet(table.parent.name, [images[name] for name in labels.melanoma], labels)


def _lesions_beside(path: Path) -> dict[str, str]:
    rows = [row for other in sorted(path.parent.glob("*Metadata.csv")) for row in read_rows(other)]
    return {row["image"]: row.get("lesion_id", "") for row in rows if "image" in row}


def _positive(text: str, name: str, path: Path) -> bool:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = -1.0
    if value not in (0.0, 1.0):
        raise StartupError(f"{path}: the label of {name} is {text!r}, neither 0 nor 1.")
    return value == 1.0
