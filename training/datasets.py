"""Readers of ISIC 2019, ISIC 2020 and HAM10000: CSV files found by their columns, images by stem, nine leaves.

Nothing is dropped silently: what cannot be used is either an error or a line in `Dataset.notes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training import layouts
from training.layouts import (
    HAM10000_DIAGNOSES,
    ISIC_2019_CODES,
    few,
    find,
    header,
    index,
    kind,
    once,
    plain,
    refuse,
    rows,
)

REDUCED: Final = layouts.REDUCED
ISIC_2020_DIAGNOSES: Final = layouts.ISIC_2020_DIAGNOSES
MARKED_DUPLICATE: Final = -1


@dataclass(frozen=True)
class Record:
    """One labelled image.

    `name` is the official id (the file's stem), `source` the collection it came from (for balancing and for reports),
    `lesion` and `patient` the official ids or None where the set has none. `fold` is the `tfrecord` of the Kaggle
    layout of ISIC 2020, which keeps patients together.
    """

    name: str
    path: Path
    leaf: str
    dataset: str
    source: str
    lesion: str | None = None
    patient: str | None = None
    fold: int | None = None

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
    """Read every ISIC 2019, ISIC 2020 and HAM10000 set at or below `root` and merge them under one label set.

    An image that several tables label alike (ISIC 2020's versions, HAM10000 inside ISIC 2019) becomes one record with
    the lesion, patient and fold that any of them knows. Rows that the Kaggle layout marks as duplicates (tfrecord −1)
    are left out with a note.

    Raises:
        StartupError: there is none, an image is missing or ambiguous, or a label is not known or contradicts another.
    """
    if not root.is_dir():
        raise StartupError(f"There is no folder {root}; pass the folder that holds ISIC 2019 and/or ISIC 2020.")
    files = (path for path in {*root.rglob("*.csv"), *root.rglob("HAM10000_metadata*")} if path.is_file())
    tables = {path: kind(header(path)) for path in sorted(files)}
    dataset = Dataset([])
    readers = {"isic2019": read_isic2019, "isic2020": read_isic2020}
    for path, found in tables.items():
        if found in readers:
            _add(dataset, readers[found](path))
        elif found == "duplicates":
            dataset.duplicates += [(row["image_name_1"], row["image_name_2"]) for row in rows(path)]
    labelled = {plain(record.name) for record in dataset.records if record.dataset == "isic2019"}
    for path in (path for path, found in tables.items() if found == "ham10000"):
        _add(dataset, read_ham10000(path, labelled))
    if not dataset.records:
        raise StartupError(
            f"{root} holds neither an ISIC 2019 table (…GroundTruth.csv with image,MEL,NV,…) "
            "nor an ISIC 2020 one (train.csv with image_name,patient_id,…,diagnosis,…,target)."
        )
    return _merged(dataset)


def read_isic2019(ground_truth: Path) -> Dataset:
    """Read `ISIC_2019_Training_GroundTruth.csv` with the `…Metadata.csv` and the images at or below its folder.

    Images of the class UNK have no leaf; they are left out with a note.

    Raises:
        StartupError: the metadata or an image is missing, or a row does not name exactly one class.
    """
    folder = ground_truth.parent
    metadata = _metadata(folder)
    if not metadata:
        raise StartupError(f"{folder} holds no …Metadata.csv for {ground_truth.name}: lesions could not be grouped.")
    images, records, unknown = index(folder), list[Record](), 0
    missing_image, missing_metadata = list[str](), list[str]()
    for row in once(ground_truth, "image"):
        name = row["image"]
        classes = [code for code in (*ISIC_2019_CODES, "UNK") if float(row.get(code) or 0) > 0.5]
        if len(classes) != 1:
            raise StartupError(f"{ground_truth.name}: {name} has {len(classes)} classes instead of one.")
        if classes == ["UNK"]:
            unknown += 1
            continue
        image, about = find(name, images), metadata.get(name)
        if image is None:
            missing_image.append(name)
        elif about is None:
            missing_metadata.append(name)
        else:
            lesion = about.get("lesion_id") or None
            records.append(Record(name, image, classes[0], "isic2019", _source_2019(name, lesion), lesion))
    refuse(missing_image, "have no image file", ground_truth)
    refuse(missing_metadata, "have no row in the metadata", ground_truth)
    notes = [f"{ground_truth.name}: {unknown} images of the class UNK left out (no leaf)"] if unknown else []
    return Dataset(records, notes=notes)


def read_isic2020(table: Path) -> Dataset:
    """Read ISIC 2020's `train.csv` (also `ISIC_2020_Training_GroundTruth.csv` and `…_v2.csv`) and its images.

    The Kaggle JPEG layout has the same columns and a `tfrecord`; ISIC 2019 in that layout has codes for diagnoses, the
    patient −1, and lesions only where a `…Metadata.csv` lies below the table's folder.

    Raises:
        StartupError: an image is missing, a diagnosis is not known, or contradicts its target.
    """
    images, records, missing, notes = index(table.parent), list[Record](), list[str](), list[str]()
    lesions = {name: row.get("lesion_id", "") for name, row in _metadata(table.parent).items()}
    for row in once(table, "image_name"):
        name, diagnosis = row["image_name"], row["diagnosis"]
        coded = diagnosis in ISIC_2019_CODES
        leaf = diagnosis if coded else ISIC_2020_DIAGNOSES.get(diagnosis)
        if leaf is None:
            raise StartupError(f"{table.name}: {name} has the unknown diagnosis {diagnosis!r}.")
        if (leaf == "MEL") != (float(row["target"]) > 0.5):
            raise StartupError(f"{table.name}: {name} is {diagnosis!r} but has target {row['target']}.")
        path, fold = find(name, images), _fold(row, table)
        lesion, patient = row.get("lesion_id") or lesions.get(name) or None, row["patient_id"]
        if path is None:
            missing += [name] if fold != MARKED_DUPLICATE else []
        elif coded:
            # Their tfrecords do not keep lesions together, so they are no folds; −1 means a duplicate in both years.
            source, marked = _source_2019(name, lesion, fold), fold if fold == MARKED_DUPLICATE else None
            records.append(Record(name, path, leaf, "isic2019", source, lesion, fold=marked))
        else:
            known = patient if patient not in ("", "-1") else None
            records.append(Record(name, path, leaf, "isic2020", "ISIC2020", lesion, known, fold))
    refuse(missing, "have no image file", table)
    alone = sum(record.dataset == "isic2019" and record.lesion is None for record in records)
    if alone and not lesions:
        notes.append(
            f"{table.name}: {alone} images of ISIC 2019 without lesion ids; add ISIC_2019_Training_Metadata.csv"
        )
    return Dataset(records, notes=notes)


def read_ham10000(table: Path, labelled: set[str]) -> Dataset:
    """Read `HAM10000_metadata` and its images, but for the ids in `labelled`: ISIC 2019 tells more about those.

    Raises:
        StartupError: a code is not known, or some of the images are missing (where all are, the table is only noted).
    """
    images, records, missing = index(table.parent), list[Record](), list[str]()
    for row in once(table, "image_id"):
        name, leaf = row["image_id"], HAM10000_DIAGNOSES.get(row["dx"])
        if name in labelled:
            continue
        if leaf is None:
            raise StartupError(f"{table.name}: {name} has the unknown dx {row['dx']!r}.")
        path = find(name, images)
        if path is None:
            missing.append(name)
        else:
            records.append(Record(name, path, leaf, "ham10000", "HAM10000", row["lesion_id"] or None))
    if not records:
        return Dataset([], notes=[f"{table.name}: no image that is not labelled by ISIC 2019"])
    refuse(missing, "have no image file", table)
    return Dataset(records)


def _merged(dataset: Dataset) -> Dataset:
    """One record per id."""
    records: dict[str, Record] = {}
    again = 0
    for record in dataset.records:
        first = records.setdefault(plain(record.name), record)
        if first is record:
            continue
        again += 1
        if first.leaf != record.leaf:
            raise StartupError(f"{record.name} is {first.leaf} in one table and {record.leaf} in another.")
        if first.path != record.path:
            raise StartupError(f"The image {record.name} is ambiguous: {few([str(first.path), str(record.path)])}.")
        records[plain(record.name)] = replace(
            first,
            lesion=first.lesion or record.lesion,
            patient=first.patient or record.patient,
            fold=record.fold if first.fold is None else first.fold,
        )
    kept = [record for record in records.values() if record.fold != MARKED_DUPLICATE]
    notes = list(dataset.notes)
    if again:
        notes.append(f"{again} images stand in several tables with the same diagnosis")
    if len(kept) < len(records):
        notes.append(f"{len(records) - len(kept)} images left out that tfrecord -1 marks as duplicates")
    return Dataset(kept, dataset.duplicates, notes)


def _fold(row: dict[str, str], table: Path) -> int | None:
    text = row.get("tfrecord")
    if text is None:
        return None
    try:
        return int(float(text))
    except ValueError as error:
        raise StartupError(f"{table.name}: {row['image_name']} has the tfrecord {text!r}.") from error


def _source_2019(name: str, lesion: str | None, tfrecord: int | None = None) -> str:
    """ISIC 2019 names no collection, but the lesion ids' prefixes do (HAM_…, BCN_…, MSK4…).

    Without lesions, in the Kaggle layout, even tfrecords hold BCN20000, and HAM10000's ids are a range of their own.
    """
    if lesion and lesion.startswith("HAM"):
        return "HAM10000"
    if lesion and lesion.startswith("BCN"):
        return "BCN20000"
    if tfrecord is not None and not lesion:
        if tfrecord >= 0 and tfrecord % 2 == 0:
            return "BCN20000"
        if "ISIC_0024306" <= name <= "ISIC_0034320":
            return "HAM10000"
    return "ISIC2017"


def _metadata(folder: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*Metadata.csv")):
        found |= {row["image"]: row for row in rows(path) if "image" in row}
    return found


def _add(dataset: Dataset, part: Dataset) -> None:
    dataset.records += part.records
    dataset.notes += part.notes
