"""Readers of ISIC 2019, ISIC 2020 and HAM10000: CSV files found by their columns, images by stem, nine leaves.

Nothing is dropped silently: what cannot be used is either an error or a line in `Dataset.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training import layouts
from training.layouts import (
    HAM10000_DIAGNOSES,
    ISIC_2019_CODES,
    binary,
    few,
    find,
    header,
    index,
    kind,
    known,
    once,
    plain,
    refuse,
    rows,
    source_2019,
    tfrecord,
)

REDUCED: Final = layouts.REDUCED
ISIC_2020_DIAGNOSES: Final = layouts.ISIC_2020_DIAGNOSES
MARKED_DUPLICATE: Final = layouts.MARKED_DUPLICATE


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
    """Labelled images, pairs of ids known to show the same picture, and what was left out and why.

    `marked` are images that the Kaggle layout marks as duplicates: nobody trains on them, and their files may be
    absent, but they tell which images belong together.
    """

    records: list[Record]
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    marked: list[Record] = field(default_factory=list)


def read(root: Path) -> Dataset:
    """Read every ISIC 2019, ISIC 2020 and HAM10000 set at or below `root` and merge them under one label set.

    An image that several tables label alike (ISIC 2020's versions, HAM10000 inside ISIC 2019) becomes one record with
    the lesion, patient and fold that any of them knows. Rows that the Kaggle layout marks as duplicates (tfrecord −1)
    are left out with a note.

    Raises:
        StartupError: there is none, a table cannot be read, an image is missing or ambiguous, or a label is not known
            or contradicts another.
    """
    if not root.is_dir():
        raise StartupError(f"There is no folder {root}; pass the folder that holds ISIC 2019 and/or ISIC 2020.")
    dataset = Dataset([])
    tables = {path: found for path in layouts.tables(root) if (found := _used(path, root, dataset.notes))}

    def of(wanted: str) -> list[Path]:
        return [path for path, found in tables.items() if found == wanted]

    lesions = _lesions(of("metadata"), of("ham10000"))
    readers = {"isic2019": read_isic2019, "isic2020": read_isic2020}
    for path, found in tables.items():
        if found in readers:
            _add(dataset, readers[found](path, lesions), path)
        elif found == "duplicates":
            pairs = ((known(row["image_name_1"]), known(row["image_name_2"])) for row in rows(path))
            dataset.duplicates += [(first, second) for first, second in pairs if first and second]
    labelled = {plain(record.name) for record in (*dataset.records, *dataset.marked) if record.dataset == "isic2019"}
    for path in of("ham10000"):
        _add(dataset, read_ham10000(path, labelled), path)
    if not dataset.records:
        more = f" ({'; '.join(dataset.notes)})" if dataset.notes else ""
        raise StartupError(
            f"{root} holds neither an ISIC 2019 table (…GroundTruth.csv with image,MEL,NV,…) "
            f"nor an ISIC 2020 one (train.csv with image_name,patient_id,…,diagnosis,…,target){more}."
        )
    return _merged(dataset)


def read_isic2019(table: Path, lesions: dict[str, str | None]) -> Dataset:
    """Read `ISIC_2019_Training_GroundTruth.csv` and the images at or below its folder.

    Images of the class UNK have no leaf; they are left out with a note.

    Args:
        table: the ground truth.
        lesions: by plain id, from the metadata; None for an image that has none.

    Raises:
        StartupError: an image is missing, has no row in the metadata, or does not have exactly one class.
    """
    if not lesions:
        raise StartupError(f"There is no …Metadata.csv with image,lesion_id for {table}: lesions could not be grouped.")
    images, records, unknown = index(table.parent), list[Record](), 0
    missing_image, missing_metadata = list[str](), list[str]()
    for row in once(table, "image"):
        name = row["image"]
        codes = (code for code in (*ISIC_2019_CODES, "UNK") if row.get(code))
        classes = [code for code in codes if binary(row[code], f"{code} of {name}", table)]
        if len(classes) != 1:
            raise StartupError(f"{table.name}: {name} has {len(classes)} classes instead of one.")
        if classes == ["UNK"]:
            unknown += 1
            continue
        image = find(name, images)
        if image is None:
            missing_image.append(name)
        elif plain(name) not in lesions:
            missing_metadata.append(name)
        else:
            lesion = lesions[plain(name)]
            records.append(Record(name, image, classes[0], "isic2019", source_2019(name, lesion), lesion))
    refuse(missing_image, "have no image file", table)
    refuse(missing_metadata, "have no row in the metadata that names lesions", table)
    notes = [f"{table.name}: {unknown} images of the class UNK left out (no leaf)"] if unknown else []
    return Dataset(records, notes=notes)


def read_isic2020(table: Path, lesions: dict[str, str | None]) -> Dataset:
    """Read ISIC 2020's `train.csv` (also `ISIC_2020_Training_GroundTruth.csv` and `…_v2.csv`) and its images.

    The Kaggle JPEG layout has the same columns and a `tfrecord`; ISIC 2019 in that layout has codes for diagnoses, the
    patient −1, and no lesions but those of the metadata.

    Args:
        table: the labels.
        lesions: by plain id, from the metadata.

    Raises:
        StartupError: an image is missing, a diagnosis is not known, or contradicts its target.
    """
    images, result, missing, alone = index(table.parent), Dataset([]), list[str](), 0
    for row in once(table, "image_name"):
        name, diagnosis = row["image_name"], row["diagnosis"]
        coded = diagnosis in ISIC_2019_CODES
        leaf = diagnosis if coded else ISIC_2020_DIAGNOSES.get(diagnosis)
        if leaf is None:
            raise StartupError(f"{table.name}: {name} has the unknown diagnosis {diagnosis!r}.")
        if (leaf == "MEL") != binary(row["target"], f"the target of {name}", table):
            raise StartupError(f"{table.name}: {name} is {diagnosis!r} but has target {row['target']}.")
        path, fold = find(name, images), tfrecord(row, table)
        lesion = known(row.get("lesion_id")) or lesions.get(plain(name))
        if path is None and fold != MARKED_DUPLICATE:
            missing.append(name)
            continue
        file = path or table.parent / f"{name}.jpg"
        if coded:
            # Their tfrecords do not keep lesions together, so they are no folds; −1 means a duplicate in both years.
            source, marked = source_2019(name, lesion, fold), fold if fold == MARKED_DUPLICATE else None
            record = Record(name, file, leaf, "isic2019", source, lesion, fold=marked)
            alone += path is not None and lesion is None and plain(name) not in lesions
        else:
            record = Record(name, file, leaf, "isic2020", "ISIC2020", lesion, known(row["patient_id"]), fold)
        (result.marked if path is None else result.records).append(record)
    refuse(missing, "have no image file", table)
    if alone:
        result.notes.append(
            f"{table.name}: {alone} images of ISIC 2019 without lesion ids; add ISIC_2019_Training_Metadata.csv"
        )
    return result


def read_ham10000(table: Path, labelled: set[str]) -> Dataset:
    """Read `HAM10000_metadata` and its images, but for the plain ids in `labelled`: ISIC 2019 tells more about those.

    Raises:
        StartupError: a code is not known, or an image is missing.
    """
    images, records, missing, left_out = index(table.parent), list[Record](), list[str](), 0
    for row in once(table, "image_id"):
        name, leaf = row["image_id"], HAM10000_DIAGNOSES.get(row["dx"])
        if plain(name) in labelled:
            left_out += 1
            continue
        if leaf is None:
            raise StartupError(f"{table.name}: {name} has the unknown dx {row['dx']!r}.")
        path = find(name, images)
        if path is None:
            missing.append(name)
        else:
            records.append(Record(name, path, leaf, "ham10000", "HAM10000", known(row["lesion_id"])))
    refuse(missing, "have no image file", table)
    notes = [f"{table.name}: {left_out} images keep the label that ISIC 2019 gives them"] if left_out else []
    return Dataset(records, notes=notes)


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
        if first.path != record.path and not first.path.samefile(record.path):
            raise StartupError(f"The image {record.name} is ambiguous: {few([str(first.path), str(record.path)])}.")
        records[plain(record.name)] = replace(
            first,
            lesion=first.lesion or record.lesion,
            patient=first.patient or record.patient,
            fold=record.fold if first.fold is None else first.fold,
        )
    kept = [record for record in records.values() if record.fold != MARKED_DUPLICATE]
    with_file = [record for record in records.values() if record.fold == MARKED_DUPLICATE]
    notes = list(dataset.notes)
    if again:
        notes.append(f"{again} images stand in several tables with the same diagnosis")
    left_out = {plain(record.name) for record in (*with_file, *dataset.marked)} - {plain(r.name) for r in kept}
    if left_out:
        without = len(left_out) - len(with_file)
        files = f", {without} of them without a file" if without else ""
        notes.append(f"{len(left_out)} images left out that tfrecord -1 marks as duplicates{files}")
    return Dataset(kept, dataset.duplicates, notes, [*with_file, *dataset.marked])


def _used(path: Path, root: Path, notes: list[str]) -> str | None:
    """The kind of a table; one that nothing reads is noted."""
    columns = header(path)
    found = kind(columns)
    if found == "metadata" and "lesion_id" not in columns:
        notes.append(f"{path.relative_to(root)} is not used for groups: it has no column lesion_id")
    elif found is None and path.name.lower() != layouts.LABELS:
        why = "its columns are none of the known layouts'" if columns else "it is empty"
        notes.append(f"{path.relative_to(root)} is not used: {why}")
    return found


def _lesions(metadata: Iterable[Path], ham10000: Iterable[Path]) -> dict[str, str | None]:
    """Lesions by plain id, None where an image has none; HAM10000's own table fills what the metadata leaves open.

    Raises:
        StartupError: two rows of the metadata give one image different lesions.
    """
    said = dict[str, str | None]()
    for path in metadata:
        for row in rows(path) if "lesion_id" in header(path) else ():
            name, lesion = plain(row["image"]), known(row["lesion_id"])
            before = said.get(name)
            if lesion and before and lesion != before:
                raise StartupError(f"{path}: {row['image']} is of lesion {lesion}, but another row says {before}.")
            said[name] = lesion or before
    ham = {plain(row["image_id"]): known(row["lesion_id"]) for path in ham10000 for row in rows(path)}
    return ham | {name: lesion or ham.get(name) for name, lesion in said.items()}


def _add(dataset: Dataset, part: Dataset, table: Path) -> None:
    dataset.records += part.records
    dataset.marked += part.marked
    dataset.notes += part.notes
    if not (part.records or part.marked or part.notes):
        dataset.notes.append(f"{table} is not used: it holds no rows")
