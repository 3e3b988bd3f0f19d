"""Readers of the official ISIC 2019 and ISIC 2020 layouts: CSV files found by name, images by stem, nine leaves.

Nothing is dropped silently: what cannot be used is either an error or a line in `Dataset.notes`.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dermserve.errors import StartupError
from dermserve.labels import LEAVES

ISIC_2019_CODES: Final = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")

ISIC_2020_DIAGNOSES: Final = {
    "melanoma": "MEL",
    "nevus": "NV",
    "seborrheic keratosis": "BKL",
    "lichenoid keratosis": "BKL",
    "solar lentigo": "BKL",
    "lentigo NOS": "BKL",
    "cafe-au-lait macule": "BENIGN_NOS",
    # Indeterminate in the ISIC Archive's taxonomy. AK is the only leaf that reports as Suspicious, so this single
    # image of the training set goes there for the sake of the reported column.
    "atypical melanocytic proliferation": "AK",
    "unknown": "BENIGN_NOS",
}
"""The `diagnosis` strings of ISIC 2020. All but melanoma carry target 0; "unknown" is a benign lesion without a name."""

REDUCED: Final = "_downsampled"
_IMAGES: Final = {".jpg", ".jpeg", ".png", ".dcm"}
_SHOWN: Final = 5


@dataclass(frozen=True)
class Record:
    """One labelled image.

    `name` is the official id (the file's stem), `source` the collection it came from (for balancing and for reports),
    `lesion` and `patient` the official ids or None where the set has none.
    """

    name: str
    path: Path
    leaf: str
    dataset: str
    source: str
    lesion: str | None = None
    patient: str | None = None

    @property
    def target(self) -> int:
        """Index of the leaf in `labels.LEAVES`."""
        return LEAVES.index(self.leaf)


@dataclass
class Dataset:
    """Labelled images, pairs of ids known to show the same picture, and what was left out and why."""

    records: list[Record]
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(root: Path) -> Dataset:
    """Read every ISIC 2019 and ISIC 2020 set at or below `root`.

    Raises:
        StartupError: there is none, an image is missing or ambiguous, or a label is not known.
    """
    if not root.is_dir():
        raise StartupError(f"There is no folder {root}; pass the folder that holds ISIC 2019 and/or ISIC 2020.")
    tables = {path: _header(path) for path in sorted(root.rglob("*.csv"))}
    dataset = Dataset([])
    for path, header in tables.items():
        if {"image", "MEL", "NV"} <= header:
            _add(dataset, read_isic2019(path))
        elif {"image_name", "patient_id", "diagnosis", "target"} <= header:
            _add(dataset, read_isic2020(path))
        elif {"image_name_1", "image_name_2"} <= header:
            dataset.duplicates += [(row["image_name_1"], row["image_name_2"]) for row in _rows(path)]
    if not dataset.records:
        raise StartupError(
            f"{root} holds neither an ISIC 2019 table (…GroundTruth.csv with image,MEL,NV,…) "
            "nor an ISIC 2020 one (train.csv with image_name,patient_id,…,diagnosis,…,target)."
        )
    repeated = [name for name, count in Counter(record.name for record in dataset.records).items() if count > 1]
    if repeated:
        raise StartupError(f"{len(repeated)} image ids are labelled more than once: {_few(repeated)}.")
    return dataset


def read_isic2019(ground_truth: Path) -> Dataset:
    """Read `ISIC_2019_Training_GroundTruth.csv` with the `…Metadata.csv` and the images at or below its folder.

    Images of the class UNK have no leaf; they are left out with a note.

    Raises:
        StartupError: the metadata or an image is missing, or a row does not name exactly one class.
    """
    folder = ground_truth.parent
    metadata: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*Metadata.csv")):
        metadata |= {row["image"]: row for row in _rows(path) if "image" in row}
    if not metadata:
        raise StartupError(f"{folder} holds no …Metadata.csv for {ground_truth.name}: lesions could not be grouped.")
    images, records, unknown = _index(folder), list[Record](), 0
    missing_image, missing_metadata = list[str](), list[str]()
    for row in _rows(ground_truth):
        name = row["image"]
        classes = [code for code in (*ISIC_2019_CODES, "UNK") if float(row.get(code) or 0) > 0.5]
        if len(classes) != 1:
            raise StartupError(f"{ground_truth.name}: {name} has {len(classes)} classes instead of one.")
        if classes == ["UNK"]:
            unknown += 1
            continue
        image, about = _find(name, images), metadata.get(name)
        if image is None:
            missing_image.append(name)
        elif about is None:
            missing_metadata.append(name)
        else:
            lesion = about.get("lesion_id") or None
            records.append(Record(name, image, classes[0], "isic2019", _source_2019(lesion), lesion))
    _refuse(missing_image, "have no image file", ground_truth)
    _refuse(missing_metadata, "have no row in the metadata", ground_truth)
    notes = [f"{ground_truth.name}: {unknown} images of the class UNK left out (no leaf)"] if unknown else []
    return Dataset(records, notes=notes)


def read_isic2020(table: Path) -> Dataset:
    """Read ISIC 2020's `train.csv` (also `ISIC_2020_Training_GroundTruth.csv` and `…_v2.csv`) and its images.

    Raises:
        StartupError: an image is missing, a diagnosis is not known, or contradicts its target.
    """
    images, records, missing = _index(table.parent), [], []
    for row in _rows(table):
        name, diagnosis = row["image_name"], row["diagnosis"]
        leaf = ISIC_2020_DIAGNOSES.get(diagnosis)
        if leaf is None:
            raise StartupError(f"{table.name}: {name} has the unknown diagnosis {diagnosis!r}.")
        if (leaf == "MEL") != (float(row["target"]) > 0.5):
            raise StartupError(f"{table.name}: {name} is {diagnosis!r} but has target {row['target']}.")
        path = _find(name, images)
        if path is None:
            missing.append(name)
        else:
            lesion, patient = row.get("lesion_id") or None, row["patient_id"] or None
            records.append(Record(name, path, leaf, "isic2020", "ISIC2020", lesion, patient))
    _refuse(missing, "have no image file", table)
    return Dataset(records)


def _source_2019(lesion: str | None) -> str:
    """ISIC 2019 names no collection, but the lesion ids' prefixes do (HAM_…, BCN_…, MSK4…)."""
    if lesion and lesion.startswith("HAM"):
        return "HAM10000"
    if lesion and lesion.startswith("BCN"):
        return "BCN20000"
    return "ISIC2017"


def _add(dataset: Dataset, part: Dataset) -> None:
    dataset.records += part.records
    dataset.notes += part.notes


def _index(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGES:
            found.setdefault(path.stem, []).append(path)
    return found


def _find(name: str, images: dict[str, list[Path]]) -> Path | None:
    """The image of an id; copies of ISIC 2019 circulate with and without the `_downsampled` of the official ids."""
    other = name.removesuffix(REDUCED) if name.endswith(REDUCED) else name + REDUCED
    paths = images.get(name) or images.get(other) or []
    if len(paths) > 1:
        raise StartupError(f"The image {name} is ambiguous: {_few([str(path) for path in paths])}.")
    return paths[0] if paths else None


def _refuse(names: list[str], what: str, table: Path) -> None:
    if names:
        raise StartupError(f"{len(names)} of the images in {table} {what}: {_few(names)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _header(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return set(next(csv.reader(file), []))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))
