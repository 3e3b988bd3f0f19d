"""ISIC 2019's metadata as training reads it: all of it below the folder, the rows of one image merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from training.check.findings import Report
from training.check.reading import Row, Sheets
from training.layouts import known, plain


def read(sheets: Sheets, report: Report) -> dict[str, Row]:
    """The metadata by plain id; rows of one id that disagree are reported."""
    tables = sheets.of("metadata")
    for path in sheets.of("isic2019"):
        if not tables:
            report.add("metadata_missing", path, "no table has its images with lesion_id or age; training refuses that")
        elif not any("lesion_id" in row for table in tables for row in sheets.rows[table][:1]):
            names = ", ".join(table.name for table in tables)
            report.add("lesions_missing", path, f"no column lesion_id in {names}")
    _compare(tables, sheets, report)
    return _merged(tables, sheets)


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
