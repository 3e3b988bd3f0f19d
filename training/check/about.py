"""ISIC 2019's metadata as training reads it: every …Metadata.csv at or below the folder of a table of labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from training.check.findings import Report
from training.check.reading import Row, Sheets, known
from training.layouts import plain


def read(sheets: Sheets, report: Report) -> dict[Path, dict[str, Row]]:
    """For each table of labels its metadata by id, rows of one id merged; those that disagree are reported."""
    read_by = {
        path: _metadata(path, sheets) for path, found in sheets.kinds.items() if found in {"isic2019", "isic2020"}
    }
    for path, tables in read_by.items():
        if sheets.kinds[path] != "isic2019":
            continue
        if not tables:
            report.add("metadata_missing", path, f"no …Metadata.csv at or below {path.parent}; training refuses that")
        elif not any("lesion_id" in row for table in tables for row in sheets.rows[table][:1]):
            names = ", ".join(table.name for table in tables)
            report.add("lesions_missing", path, f"no column lesion_id in {names}")
    _compare({table for tables in read_by.values() for table in tables}, sheets, report)
    return {path: _merged(tables, sheets) for path, tables in read_by.items()}


def misplaced(labelled: set[str], about: dict[Path, dict[str, Row]], sheets: Sheets, report: Report) -> None:
    """Report metadata of labelled images that training neither reads nor has from elsewhere."""
    lacking = labelled - {name for rows in about.values() for name in rows}
    for path, found in sheets.kinds.items():
        if found == "metadata" and not any(path in _metadata(table, sheets) for table in about):
            names = lacking & {plain(row["image"]) for row in sheets.rows[path]}
            if names:
                text = (
                    f"it tells of {len(names)} labelled images; training reads …Metadata.csv below the labels' folder"
                )
                report.add("metadata_misplaced", path, text)


def _metadata(table: Path, sheets: Sheets) -> list[Path]:
    return [
        path
        for path, found in sheets.kinds.items()
        if found == "metadata" and path.stem.endswith("Metadata") and path.is_relative_to(table.parent)
    ]


def _compare(tables: Iterable[Path], sheets: Sheets, report: Report) -> None:
    said: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(tables):
        for line, row in enumerate(sheets.rows[path], 2):
            for column, value in row.items():
                if column != "image" and known(value):
                    said[plain(row["image"])][column].setdefault(value, f"{path.name} line {line}")
    for name, columns in said.items():
        for column, values in columns.items():
            if len(values) > 1:
                text = "; ".join(f"{value!r} in {place}" for value, place in values.items())
                report.add("metadata_row_repeated", name, f"{column} {text}")


def _merged(tables: list[Path], sheets: Sheets) -> dict[str, Row]:
    rows: dict[str, Row] = defaultdict(dict)
    for path in tables:
        for row in sheets.rows[path]:
            merged = rows[plain(row["image"])]
            merged |= {column: value for column, value in row.items() if not known(merged.get(column))}
    return dict(rows)
