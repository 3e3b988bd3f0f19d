"""Melanoma or not, read from a table of labels: a test set's, ISIC 2019's ground truth or ISIC 2020's train.csv."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dermserve.errors import StartupError
from training.layouts import LABELS, binary, few, find, index, known, plain, refuse, rows, tables

VALIDATION_NAME = "val"
"""What the validation images are called among the data sets of a card."""

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

    Groups for the intervals come from the columns `group_id`, `lesion_id` and `patient_id`, where there are several
    joined; or from ISIC 2019's `…Metadata.csv` beside the file.

    Raises:
        StartupError: the file is missing or empty, its columns are not known, an image stands in it twice, or a value
            is neither 0 nor 1.
    """
    table = read_rows(path)
    columns = table[0].keys()
    pair = next((pair for pair in _COLUMNS if set(pair) <= columns), None)
    if pair is None:
        wanted = " or ".join(",".join(pair) for pair in _COLUMNS)
        raise StartupError(f"{path} has the columns {','.join(columns)}; it needs {wanted}.")
    image, value = pair
    grouping = [column for column in _GROUPS if column in columns]
    lesions = {} if grouping else _lesions_beside(path)
    melanoma: dict[str, bool] = {}
    groups: dict[str, str] = {}
    seen = set[str]()
    for row in table:
        name = stem(row[image])
        if plain(name) in seen:
            raise StartupError(f"{path} labels {name} more than once.")
        seen.add(plain(name))
        melanoma[name] = binary(row[value], f"the label of {name}", path)
        groups[name] = (known(row[grouping[0]]) if grouping else lesions.get(plain(name))) or name
    if len(grouping) > 1:
        groups = _joined({stem(row[image]): [row[column] for column in grouping] for row in table})
    return Labels(melanoma, groups)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        StartupError: the file is missing, is not UTF-8, has no rows, or a row is cut off.
    """
    found = rows(path)
    if not found:
        raise StartupError(f"{path} holds no rows.")
    return found


def find_test_sets(root: Path) -> list[TestSet]:
    """Test sets below `root`: folders with a `labels.csv` (`image,melanoma`).

    Each is named after its folder; where several have that name, by the path from `root` with dashes.

    Raises:
        StartupError: a labelled image is missing or ambiguous, or a set is called as the validation images are.
    """
    found = [path for path in tables(root) if path.name.lower() == LABELS]
    for path in found:
        if path.parent.name == VALIDATION_NAME:
            raise StartupError(f"{path.parent} holds a test set, and the validation images are called so: rename it.")
    times = Counter(path.parent.name for path in found)
    # A slash in a name stands for one of a set's sources everywhere else.
    names = [
        path.parent.name if times[path.parent.name] == 1 else "-".join(path.parent.relative_to(root).parts)
        for path in found
    ]
    if len(set(names)) < len(names):
        raise StartupError(f"Two test sets below {root} would have one name, of {few(names)}: rename a folder.")
    return [_test_set(path, name) for path, name in zip(found, names, strict=True)]


def _test_set(table: Path, name: str) -> TestSet:
    labels = read_labels(table)
    images = index(table.parent, _IMAGES)
    paths = {image: find(image, images) for image in labels.melanoma}
    refuse([image for image, path in paths.items() if path is None], "have no image file", table)
    return TestSet(name, [path for path in paths.values() if path], labels)


def _joined(ids: dict[str, list[str]]) -> dict[str, str]:
    """Images that share an id in any column, also by way of others, as one group named after its first image."""
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for name, row in ids.items():
        for key in enumerate(row):
            if known(key[1]):
                parent[root(name)] = root(key)
    first: dict[object, str] = {}
    return {name: first.setdefault(root(name), name) for name in sorted(ids)}


def _lesions_beside(path: Path) -> dict[str, str]:
    beside = sorted(other for other in path.parent.iterdir() if other.name.lower().endswith("metadata.csv"))
    found = [row for other in beside for row in read_rows(other)]
    return {plain(row["image"]): row["lesion_id"] for row in found if "image" in row and known(row.get("lesion_id"))}
