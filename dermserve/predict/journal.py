"""The journal beside the output: every input in order, and every outcome as it came. The tables are made from it.

One SQLite file in WAL mode with full synchronisation: what was committed survives SIGKILL and a power cut. It is locked for
as long as it is open, so two runs never write one output; that also spares SQLite its shared memory, so that the output may
lie on a network share.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from dermserve.errors import RequestInvalid
from dermserve.predict.outcome import Done, Item, Refusal, Scores, Stamp, as_text

_FORMAT: Final = 1
_PAGE: Final = 1000
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE inputs (
  position INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  path BLOB,               -- NULL: a row of a table that was written before there was a journal
  is_folder INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE outcomes (
  position INTEGER PRIMARY KEY REFERENCES inputs,
  size INTEGER, mtime_ns INTEGER, sha256 TEXT,
  code TEXT, detail TEXT, passing INTEGER,
  benign REAL, suspicious REAL, malignant REAL, melanoma REAL,
  ood REAL, abstained INTEGER, document TEXT
);
CREATE INDEX passing ON outcomes (position) WHERE passing;
"""
_STORE: Final = f"INSERT OR REPLACE INTO outcomes VALUES ({', '.join('?' * 14)})"  # noqa: S608
_ROWS: Final = """
SELECT position, name, o.position AS done, code, detail, benign, suspicious, malignant, melanoma, ood, abstained, document
FROM inputs LEFT JOIN outcomes o USING (position) WHERE position > ? ORDER BY position
"""


class JournalFault(RequestInvalid):
    """The journal cannot be read or written; `detail` says why, and what to do."""

    exit_status = 4


class JournalDamaged(JournalFault):
    """It is no journal, or not whole."""


class Row(NamedTuple):
    """One input with its outcome, as the tables need it. `document` is JSON."""

    position: int
    name: str
    code: str | None
    detail: str | None
    probabilities: tuple[float, float, float, float]
    ood: float | None
    abstained: bool | None
    document: str | None


class Known(NamedTuple):
    """What is recorded of a name; `size` and `mtime_ns` are None where it has no outcome yet."""

    position: int
    size: int | None
    mtime_ns: int | None


class Counts(NamedTuple):
    """How many inputs there are, and what became of them."""

    inputs: int
    scored: int
    refused: int

    @property
    def done(self) -> int:
        return self.scored + self.refused


def journal_path(output: Path) -> Path:
    """`out.csv` → `out.csv.journal`, beside it."""
    return output.with_name(f"{output.name}.journal")


class Journal:
    """One thread at a time may use it.

    Raises:
        JournalFault: on any use, where the disk is full, another run holds the file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fresh = not path.exists()
        with self._told():
            self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "cache_size=-16384"):
            self._db.execute(f"PRAGMA {pragma}")
        with self._transaction():
            if not self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self.state("format", _FORMAT)
        if self.fact("format") != _FORMAT:
            self._db.close()
            raise RequestInvalid(f"{as_text(self.path)} is of another version of dermserve.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            damaged = getattr(error, "sqlite_errorname", "").startswith(_DAMAGED)
            kind = JournalDamaged if damaged else JournalFault
            raise kind(f"{as_text(self.path)} {_reason(error)}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything in the block, or nothing of it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def fact(self, name: str) -> Any:
        """What `state` recorded under a name; None where nothing was."""
        with self._told():
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row and row[0]

    def state(self, name: str, value: float | str | None) -> None:
        """Record a fact about the whole run."""
        with self._told():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextmanager
    def listing(self) -> Iterator[sqlite3.Connection]:
        """A transaction in which `inputs` changes: a run that is killed in it has listed nothing."""
        with self._told(), self._transaction():
            yield self._db

    def keep(self, rows: Iterable[tuple[str, Done]], facts: Mapping[str, float | None]) -> None:
        """Take over, in order, what a run without a journal wrote: names, and outcomes whose positions do not matter yet."""
        with self._told(), self._transaction():
            for fact, value in facts.items():
                self.state(fact, value)
            for name, done in rows:
                position = self._db.execute("INSERT INTO inputs (name) VALUES (?)", (name,)).lastrowid
                assert position is not None
                self._db.execute(_STORE, _stored(done._replace(position=position)))

    def append(self, found: Iterable[tuple[str, Path]]) -> int:
        """Add inputs behind all others; a name that is there already is left as it is. Returns the last position before."""
        values = ((name, os.fsencode(path)) for name, path in found)
        with self._told(), self._transaction():
            last = self._db.execute("SELECT coalesce(max(position), 0) FROM inputs").fetchone()[0]
            self._db.executemany("INSERT OR IGNORE INTO inputs (name, path) VALUES (?, ?)", values)
        return int(last)

    def record(self, batch: Sequence[Done]) -> None:
        """Commit outcomes; they are on the disk when this returns."""
        with self._told(), self._transaction():
            self._db.executemany(_STORE, map(_stored, batch))

    def forget(self, positions: Iterable[int]) -> None:
        """Drop outcomes, so that their inputs are scored again."""
        with self._told(), self._transaction():
            self._db.executemany("DELETE FROM outcomes WHERE position = ?", ((position,) for position in positions))

    def forget_passing(self) -> int:
        """Drop the refusals whose cause may be gone; returns how many."""
        with self._told():
            return self._db.execute("DELETE FROM outcomes WHERE passing").rowcount

    def touched(self, position: int, stamp: Stamp) -> None:
        """The file has another date, and the content that was scored."""
        with self._told():
            values = (stamp.size, stamp.mtime_ns, stamp.sha256, position)
            self._db.execute("UPDATE outcomes SET size = ?, mtime_ns = ?, sha256 = ? WHERE position = ?", values)

    def pending(self, after: int) -> list[Item]:
        """The next inputs behind a position that have no outcome."""
        query = """
        SELECT position, name, path FROM inputs WHERE position > ?
        AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.position = inputs.position) ORDER BY position LIMIT ?
        """
        with self._told():
            rows = self._db.execute(query, (after, _PAGE)).fetchall()
        return [Item(position, name, Path(os.fsdecode(path or name.encode()))) for position, name, path in rows]

    def rows(self, after: int) -> Iterator[Row]:
        """Inputs with their outcomes behind a position, in order, up to the first that has none yet."""
        with self._told():
            for row in self._db.execute(_ROWS, (after,)):
                if row["done"] is None:
                    return
                abstained = None if row["abstained"] is None else bool(row["abstained"])
                yield Row(
                    row["position"], row["name"], row["code"], row["detail"], tuple(row[5:9]), row["ood"], abstained,
                    row["document"],
                )  # fmt: skip

    def stamped(self, after: int) -> list[tuple[Item, Stamp]]:
        """The next inputs behind a position whose file was read, and what it was then."""
        query = """
        SELECT position, name, path, size, mtime_ns, sha256 FROM outcomes JOIN inputs USING (position)
        WHERE position > ? AND sha256 IS NOT NULL AND path IS NOT NULL ORDER BY position LIMIT ?
        """
        with self._told():
            rows = self._db.execute(query, (after, _PAGE)).fetchall()
        return [(Item(row[0], row[1], Path(os.fsdecode(row[2]))), Stamp(*row[3:6])) for row in rows]

    def known(self, names: Sequence[str]) -> dict[str, Known]:
        """What is recorded of some names; at most 500 at a time."""
        marks = ", ".join("?" * len(names))
        query = f"""
        SELECT name, position, size, mtime_ns FROM inputs LEFT JOIN outcomes USING (position) WHERE name IN ({marks})
        """  # noqa: S608  question marks alone are put in
        with self._told():
            return {row[0]: Known(*row[1:]) for row in self._db.execute(query, names)}

    def counts(self) -> Counts:
        """See `Counts`."""
        with self._told():
            inputs = self._db.execute("SELECT count(*) FROM inputs").fetchone()[0]
            scored, refused = self._db.execute("SELECT count(benign), count(code) FROM outcomes").fetchone()
        return Counts(inputs, scored, refused)

    def move(self, path: Path) -> None:
        """Take another journal's place; what that one held is gone."""
        with self._told():
            self._db.close()
            # Its log first: SQLite would play it into the file that comes in its place.
            remove(path, keep_file=True)
            self.path.replace(path)
            _synchronise(path.parent)  # or a power cut could bring the other one back, beside tables of this one
            self.path = path
            self._open()

    def close(self) -> None:
        """Fold the log into the file. What was committed is safe without it."""
        with suppress(sqlite3.Error):
            self._db.close()


def remove(path: Path, *, keep_file: bool = False) -> None:
    """Delete a journal that is not open, with what SQLite keeps beside it, or the latter alone."""
    for suffix in ("-wal", "-shm", "-journal", *(() if keep_file else ("",))):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _synchronise(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stored(done: Done) -> tuple[Any, ...]:
    stamp: tuple[Any, ...] = done.stamp or (None, None, None)
    if isinstance(done.outcome, Refusal):
        code, detail, passing = done.outcome
        return (done.position, *stamp, code, detail, passing or None, *([None] * 7))
    scores: Scores = done.outcome
    return (
        done.position, *stamp, None, None, None, *scores.probabilities, scores.ood, scores.abstained, scores.document
    )  # fmt: skip


def _reason(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "is in use: another dermserve predict writes this output."
    if name.startswith(_DAMAGED):
        return "is damaged. Delete it, and --resume goes on from the table alone."
    return f"cannot be written: {error}."
