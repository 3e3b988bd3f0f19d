"""Reads CSV files and tells what each is; a table that training cannot use, though it seems meant for it, is an error."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from training.check.findings import Report
from training.layouts import COLUMNS, kind, plain
from training.truth import stem

Row = dict[str, str]

TEST_COLUMNS: Final = (("image", "melanoma"), ("image", "MEL"), ("image_name", "target"))
"""Image and label in a `labels.csv`."""

_NAMES: Final = (
    ("ham10000_metadata*", "ham10000"),
    ("train.csv", "isic2020"),
    ("isic_2020*groundtruth*.csv", "isic2020"),
    ("*groundtruth*.csv", "isic2019"),
    ("isic_2019*metadata.csv", "metadata"),
    ("*duplicates.csv", "duplicates"),
    ("labels.csv", "test"),
)
"""What a table is meant to be, by its name."""

_CELL: Final = re.compile(r'[^\s;,|"]+')
_LABEL_COLUMNS: Final = {"MEL", "NV", "diagnosis", "target", "benign_malignant", "dx"}


@dataclass
class Sheets:
    """Rows by table, what each table is, and for tables of no known kind the image ids that they may name."""

    rows: dict[Path, list[Row]] = field(default_factory=dict)
    kinds: dict[Path, str] = field(default_factory=dict)
    unknown: dict[Path, set[str]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Path]:
        """The tables of one kind, in order."""
        return sorted(path for path, found in self.kinds.items() if found == kind)


def read(files: Iterable[Path], report: Report) -> Sheets:
    """Read every table among the files."""
    sheets = Sheets()
    for path in files:
        if path.suffix.lower() != ".csv" and not path.name.lower().startswith("ham10000_metadata"):
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            reader = csv.DictReader(io.StringIO(text))
            columns = set(reader.fieldnames or [])
            found = _kind(path, columns)
            used = reader if found else ()
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in used]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            report.add("table_unreadable", path, str(error))
            continue
        meant = _meant(path, columns, report.root)
        if not columns or (found and not rows and not _may_be_empty(path, found, report.root)):
            report.add("table_empty", path, f"{path.stat().st_size} bytes without a row")
        elif found:
            sheets.rows[path], sheets.kinds[path] = rows, found
        elif meant:
            wanted = ", ".join(sorted(COLUMNS[meant]))
            report.add("table_incomplete", path, f"it has {', '.join(reader.fieldnames or [])}; it needs {wanted}")
        else:
            report.add("table_unknown", path, "its columns are none of the known layouts'")
            if not _without_labels(path, columns):
                sheets.unknown[path] = {plain(stem(cell)) for cell in {cell.group() for cell in _CELL.finditer(text)}}
    return sheets


def _kind(path: Path, columns: set[str]) -> str | None:
    found = kind(columns)
    if found is None and path.name.endswith("Metadata.csv") and "image" in columns:
        return "metadata"
    if found is None and path.name == "labels.csv" and any(set(pair) <= columns for pair in TEST_COLUMNS):
        return "test"
    return found


def _meant(path: Path, columns: set[str], root: Path) -> str | None:
    """Which kind a table of no kind seems meant to be: by its name, or because it lacks little."""
    if path == root / "splits.csv":
        return "splits"
    by_name = next((found for pattern, found in _NAMES if fnmatch(path.name.lower(), pattern)), None)
    if by_name:
        return by_name
    # Other separators and capitals, too.
    have = {part.strip().casefold() for column in columns for part in re.split(r"[;\t|]", column)}
    for found in ("isic2019", "isic2020", "ham10000"):
        missing = {column for column in COLUMNS[found] if column.casefold() not in have}
        if len(missing) <= 1 and (COLUMNS[found] - missing) & _LABEL_COLUMNS:
            return found
    return None


def _may_be_empty(path: Path, found: str, root: Path) -> bool:
    """`data check --pairs` writes a list without rows where it finds no pairs; only one splits.csv is read."""
    return found == "duplicates" or (found == "splits" and path != root / "splits.csv")


def _without_labels(path: Path, columns: set[str]) -> bool:
    """Whether a table only lists images that nobody labels, as the Kaggle layout does for its test images."""
    listed = {"image_name", "patient_id"} <= columns and not columns & _LABEL_COLUMNS
    return listed or path.name.startswith("sample_submission")
