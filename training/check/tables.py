"""Reads every table below a folder without giving up at the first fault: rows become entries, faults findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from training.check import about, reading
from training.check.findings import Report
from training.check.reading import TEST_COLUMNS, Row
from training.layouts import HAM10000_DIAGNOSES, ISIC_2019_CODES, ISIC_2020_DIAGNOSES, known, plain
from training.truth import stem


@dataclass
class Entry:
    """One label row. `leaf` is None where the row names none, `melanoma` where not even that can be told.

    `dataset` is isic2019, isic2020 or ham10000 for training images and `test:NAME` for a test set. `diagnosis` is the
    label in the table's own words. `fold` is the tfrecord of the Kaggle layout, `group` the group_id of a test set.
    `path` is set when its file is found.
    """

    name: str
    table: Path
    line: int
    dataset: str
    diagnosis: str = ""
    leaf: str | None = None
    melanoma: bool | None = None
    lesion: str | None = None
    patient: str | None = None
    fold: int | None = None
    group: str | None = None
    path: Path | None = None

    @property
    def is_test(self) -> bool:
        return self.dataset.startswith("test:")

    @property
    def id(self) -> str:
        """The official id without the `_downsampled` that some copies carry."""
        return plain(self.name)

    @property
    def place(self) -> str:
        return f"{self.table.name} line {self.line}"


@dataclass
class Tables:
    """All rows below a folder. `about` is ISIC 2019's metadata: table of labels → id → row.

    `metadata` holds the rows that tell age, sex or site: (table, line, id, row). `parts` is splits.csv:
    id → (group, part). `unknown` holds the ids that tables of no known kind may name.
    """

    entries: list[Entry] = field(default_factory=list)
    about: dict[Path, dict[str, Row]] = field(default_factory=dict)
    metadata: list[tuple[Path, int, str, Row]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    splits: Path | None = None
    kinds: dict[Path, str] = field(default_factory=dict)
    unknown: dict[Path, set[str]] = field(default_factory=dict)

    def of(self, wanted: str) -> list[Path]:
        """The tables of one kind."""
        return [path for path, found in self.kinds.items() if found == wanted]


def read(files: Iterable[Path], report: Report) -> Tables:
    """Read all tables among the files; whatever is wrong with a table or a row goes to the report."""
    sheets = reading.read(files, report)
    rows = sheets.rows
    tables = Tables(about=about.read(sheets, report), kinds=sheets.kinds, unknown=sheets.unknown)
    for found, column in (("metadata", "image"), ("isic2020", "image_name"), ("ham10000", "image_id")):
        for path in tables.of(found):
            tables.metadata += [(path, line, plain(row[column]), row) for line, row in enumerate(rows[path], 2)]
    for path in tables.of("duplicates"):
        tables.duplicates += [(plain(row["image_name_1"]), plain(row["image_name_2"])) for row in rows[path]]
    for path in tables.of("splits"):
        if path == report.root / "splits.csv":
            _splits(path, rows[path], tables, report)
        else:
            report.add("table_unknown", path, "of several divisions, training reads the splits.csv at the top only")
    for wanted, reader_ in _READERS.items():
        for path in tables.of(wanted):
            seen: dict[str, int] = {}
            for line, row in enumerate(rows[path], 2):
                entry = reader_(path, line, row, tables, report)
                if entry.name in seen:
                    again = f"{path.name} lines {seen[entry.name]} and {line}"
                    report.add("label_row_repeated", entry.name, again)
                else:
                    seen[entry.name] = line
                    tables.entries.append(entry)
    return tables


def by_id(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Entries of one id together, in order of appearance."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.id].append(entry)
    yield from found.items()


def _splits(path: Path, rows: list[Row], tables: Tables, report: Report) -> None:
    tables.splits = path
    for line, row in enumerate(rows, 2):
        name = plain(row["image"])
        if name in tables.parts:
            report.add("split_row_repeated", name, f"{path.name} line {line}")
            continue
        tables.parts[name] = (row["group_id"], row["split"])
        if row["split"] not in {"train", "val", "test"}:
            report.add("split_unknown", name, f"{path.name} line {line}: {row['split']!r}")


def _isic2019(path: Path, line: int, row: Row, tables: Tables, report: Report) -> Entry:
    its = tables.about.get(plain(row["image"]), {})
    entry = Entry(row["image"], path, line, "isic2019", lesion=known(its.get("lesion_id")))
    try:
        values = {code: float(row.get(code) or 0) for code in (*ISIC_2019_CODES, "UNK")}
    except ValueError:
        report.add("label_classes", entry.name, f"{entry.place}: a class is neither 0 nor 1")
        return entry
    classes = [code for code, value in values.items() if value == 1]
    if len(classes) != 1 or any(value not in (0, 1) for value in values.values()):
        report.add("label_classes", entry.name, f"{entry.place}: {len(classes)} classes ({', '.join(classes)})")
        return entry
    entry.diagnosis = classes[0]
    entry.leaf = classes[0] if classes[0] != "UNK" else None
    entry.melanoma = classes[0] == "MEL"
    if entry.leaf is None:
        report.add("label_unusable", entry.name, entry.place)
    if tables.about and not its:
        report.add("metadata_missing", entry.name, f"{entry.place}: no row in any …Metadata.csv")
    return entry


def _isic2020(path: Path, line: int, row: Row, tables: Tables, report: Report) -> Entry:
    """Also the Kaggle layouts: `tfrecord` is the fold, and ISIC 2019 in it has codes for diagnoses."""
    diagnosis = row["diagnosis"]
    year = "isic2019" if diagnosis in ISIC_2019_CODES else "isic2020"
    lesion = known(row.get("lesion_id")) or known(tables.about.get(plain(row["image_name"]), {}).get("lesion_id"))
    entry = Entry(row["image_name"], path, line, year, diagnosis, lesion=lesion, patient=known(row.get("patient_id")))
    entry.leaf = diagnosis if year == "isic2019" else ISIC_2020_DIAGNOSES.get(diagnosis)
    target = _number(row["target"])
    if target not in (0, 1):
        report.add("label_classes", entry.name, f"{entry.place}: target {row['target']!r}")
    else:
        entry.melanoma = target == 1
    if entry.leaf is None:
        report.add("label_unknown", entry.name, f"{entry.place}: {diagnosis!r}")
    said = {"malignant": True, "benign": False}.get(row.get("benign_malignant", ""))
    claims = {"diagnosis": (entry.leaf == "MEL") if entry.leaf else None, "target": entry.melanoma}
    if year == "isic2020":
        claims["benign_malignant"] = said
    if len({claim for claim in claims.values() if claim is not None}) > 1:
        text = f"diagnosis {diagnosis!r}, {row.get('benign_malignant', '')!r}, target {row['target']}"
        report.add("label_contradicts_target", entry.name, f"{entry.place}: {text}")
    if "tfrecord" in row:
        fold = _number(row["tfrecord"])
        if fold is None or fold not in range(-1, 10_000):
            report.add("fold_invalid", entry.name, f"{entry.place}: tfrecord {row['tfrecord']!r}")
        else:
            entry.fold = int(fold)
    return entry


def _ham10000(path: Path, line: int, row: Row, tables: Tables, report: Report) -> Entry:  # noqa: ARG001 - one shape
    entry = Entry(row["image_id"], path, line, "ham10000", row["dx"], lesion=known(row["lesion_id"]))
    entry.leaf = HAM10000_DIAGNOSES.get(row["dx"])
    if entry.leaf is None:
        report.add("label_unknown", entry.name, f"{entry.place}: dx {row['dx']!r}")
    else:
        entry.melanoma = entry.leaf == "MEL"
    return entry


def _test(path: Path, line: int, row: Row, tables: Tables, report: Report) -> Entry:  # noqa: ARG001 - one shape
    name, label = next((row[image], row[label]) for image, label in TEST_COLUMNS if image in row and label in row)
    value = _number(label)
    entry = Entry(stem(name), path, line, f"test:{_named(path, report)}", label)
    for column in ("lesion_id", "patient_id", "group_id"):
        setattr(entry, column.removesuffix("_id"), known(row.get(column)))
    if value in (0, 1):
        entry.melanoma = value == 1
    else:
        report.add("label_classes", entry.name, f"{entry.place}: melanoma {label!r}")
    return entry


def _named(path: Path, report: Report) -> str:
    """A test set's name: its folder as seen from the top, so that two folders of one name stay apart."""
    return path.parent.name if path.parent == report.root else report.shown(path.parent)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


_READERS: Final = {"isic2019": _isic2019, "isic2020": _isic2020, "ham10000": _ham10000, "test": _test}
