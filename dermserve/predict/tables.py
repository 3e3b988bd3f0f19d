"""The tables that people and programs read, made from the journal in the order of the inputs, and growing with it.

A table that an earlier run left is compared with the journal row by row: it goes on behind the last row that agrees, so
that a torn last line or a file that a power cut shortened mends itself. What follows in it is cut off.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from dermserve.errors import RequestInvalid
from dermserve.labels import CSV_HEADER
from dermserve.predict.journal import Journal, Row
from dermserve.predict.outcome import as_text

ERRORS_HEADER: Final = ("filename", "code", "detail")
ABSTAINED_HEADER: Final = ("filename", "ood", "threshold")
_LINE_BEGINS: Final = b'{"filename": '
_PAGE: Final = 2000

Cells = Sequence[str]


def errors_path(output: Path) -> Path:
    """`out.csv` → `out.errors.csv`, beside it."""
    return _beside(output, "errors")


def abstained_path(output: Path) -> Path:
    """`out.csv` → `out.abstained.csv`, beside it."""
    return _beside(output, "abstained")


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f"{output.name.removesuffix('.csv').removesuffix('.jsonl')}.{what}.csv")


class Outputs(NamedTuple):
    """What is to be written; at least one of the two is there."""

    csv: Path | None
    jsonl: Path | None

    @property
    def main(self) -> Path:
        """The one that the journal, the errors and the abstentions are named after."""
        found = self.csv or self.jsonl
        assert found is not None
        return found

    @property
    def written(self) -> str:
        """For people."""
        return " and ".join(as_text(path) for path in self if path)


class Table:
    """One file that grows by whole rows.

    Args:
        path: a CSV, or JSON lines.
        header: its first line; None for JSON lines.
        kept: it exists without a row, too, and says by that that there was nothing to say.

    Raises:
        RequestInvalid: the file is there, and of another kind.
    """

    def __init__(self, path: Path, header: Cells | None, *, kept: bool = True) -> None:
        self.path = path
        self.rows = 0
        self._kept = kept
        self._header = b"" if header is None else _lines([header])[0]
        self._file: BinaryIO | None = None
        self._comparing = False
        self._size = 0  # bytes that agree with the journal
        self._require_own()

    def _require_own(self) -> None:
        if not self.path.parent.is_dir():
            raise RequestInvalid(
                f"{as_text(self.path)} cannot be written: there is no folder {as_text(self.path.parent)}."
            )
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            first, own = file.readline(1 << 16), self._header.rstrip(b"\n")
        if own:
            ours = first.rstrip(b"\r\n") == own if first.endswith(b"\n") else own.startswith(first)
        else:
            ours = first.startswith(_LINE_BEGINS) or _LINE_BEGINS.startswith(first)
        if not ours and first.strip(b"\0"):  # zeros are what a power cut leaves
            raise RequestInvalid(f"{as_text(self.path)} is not a file that this command wrote; nothing was changed.")

    def write(self, rows: Sequence[bytes]) -> None:
        """Add rows; the operating system has them when this returns."""
        if self._file is None:
            if not rows and not self._kept:
                return
            rows = [self._header, *rows]
            self.rows -= 1
        file = self._file or self._open()
        data = b"".join(rows)
        if self._comparing:
            file.seek(self._size)
            if file.read(len(data)) != data:
                self._go_on_here()
        if not self._comparing:
            file.write(data)
            file.flush()
        self._size += len(data)
        self.rows += len(rows)

    def _open(self) -> BinaryIO:
        self._comparing = self.path.is_file()
        self._file = self.path.open("r+b" if self._comparing else "wb")
        return self._file

    def _go_on_here(self) -> None:
        assert self._file is not None
        self._file.seek(self._size)
        self._file.truncate()
        self._comparing = False

    def settle(self) -> None:
        """All rows that there are were written: what an earlier run left behind them goes."""
        if self._comparing:
            self._go_on_here()
        elif self._file is None and not self._kept and self.path.is_file():
            self.path.unlink()

    def close(self) -> None:
        """Bring the file onto the disk. A row that a full disk refused was reported when it was written."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
            with suppress(OSError):
                self._file.close()
            self._file = None


class Tables:
    """The results, and beside them what was refused and what was abstained on.

    Args:
        outputs: where to.
        threshold: on `ood`, of this installation's card; None where there is none.
        looked_for: whether abstentions can be told at all.

    Raises:
        RequestInvalid: see `Table`; no file was changed.
    """

    def __init__(self, outputs: Outputs, *, threshold: float | None, looked_for: bool) -> None:
        self._outputs, self._threshold, self._looked_for = outputs, threshold, looked_for
        self._last = 0
        self._make()

    def _make(self) -> None:
        csv_path, jsonl_path = self._outputs
        self.csv = Table(csv_path, CSV_HEADER) if csv_path else None
        self.jsonl = Table(jsonl_path, None) if jsonl_path else None
        # An empty table of marks says that they were looked for; an empty one of refusals would say nothing.
        self.errors = Table(errors_path(self._outputs.main), ERRORS_HEADER, kept=False)
        self.abstained = Table(abstained_path(self._outputs.main), ABSTAINED_HEADER, kept=self._looked_for)
        self.begun = False

    @property
    def existing(self) -> bool:
        """Whether an earlier run left anything."""
        return any(table.path.exists() for table in self._all())

    @property
    def rows(self) -> int:
        """Results that were written."""
        main = self.csv or self.jsonl
        assert main is not None
        return main.rows

    def emit(self, journal: Journal) -> None:
        """Write what the journal holds behind the last row, up to the first input without an outcome.

        Raises:
            OSError: a table cannot be written; the journal holds its rows.
        """
        rows = journal.rows(self._last)
        while page := list(islice(rows, _PAGE)):
            self._write(page)
            self._last = page[-1].position
        if not self.begun:
            self._write([])
            for table in self._all():
                table.settle()
            self.begun = True

    def again(self) -> None:
        """Start from the first row: outcomes that were written are no longer those of the journal."""
        self.close()
        self._last = 0
        self._make()

    def _write(self, page: Sequence[Row]) -> None:
        scored = [row for row in page if row.code is None]
        # First: were a row there alone, an interruption would leave figures that mean nothing unmarked.
        self.abstained.write(_lines(self._marks(scored)) if self._looked_for else [])
        self.errors.write(_lines((row.name, row.code, row.detail or "") for row in page if row.code is not None))
        if self.jsonl is not None:
            self.jsonl.write([_json_line(row) for row in scored])
        if self.csv is not None:
            self.csv.write(_lines((row.name, *(f"{value:.6f}" for value in row.probabilities)) for row in scored))

    def _marks(self, scored: Iterable[Row]) -> Iterator[Cells]:
        for row in scored:
            if row.ood is None or self._threshold is None:
                if row.abstained:  # the server's verdict, which comes without figures
                    yield row.name, "" if row.ood is None else f"{row.ood:.6f}", ""
            elif row.ood > self._threshold:
                yield row.name, f"{row.ood:.6f}", f"{self._threshold:.6f}"

    def _all(self) -> list[Table]:
        return [table for table in (self.abstained, self.errors, self.jsonl, self.csv) if table is not None]

    def close(self) -> None:
        """See `Table.close`."""
        for table in self._all():
            table.close()


def _lines(rows: Iterable[Cells]) -> list[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()
    return lines


def _json_line(row: Row) -> bytes:
    known = json.loads(row.document) if row.document else {}
    return json.dumps({"filename": row.name} | known, ensure_ascii=False).encode() + b"\n"
