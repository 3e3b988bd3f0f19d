"""Which images to score, and in which order: files, folders, globs and lists, listed into the journal.

Nothing is held in memory for each image: names go into a table of the journal as they are found, and SQLite sorts them.
"""

from __future__ import annotations

import glob
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple

import click

from dermserve.errors import RequestInvalid
from dermserve.predict.journal import Journal
from dermserve.predict.outcome import as_text

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".dcm")
STDIN: Final = "-"
_CHUNK: Final = 1 << 16
_TELL_EVERY: Final = 1000

_ADD: Final = """
INSERT INTO inputs (name, path, is_folder) SELECT name, path, is_folder FROM listing WHERE true ORDER BY source, key
ON CONFLICT (name) DO UPDATE SET path = excluded.path WHERE path IS NULL
"""


class Found(NamedTuple):
    """`key` sorts within its source. `path` is absolute. A folder is found where it cannot be listed."""

    key: bytes
    name: str
    path: bytes
    is_folder: bool = False


Source = Callable[[], Iterator[Found]]


def sources(paths: Sequence[str], lists: Sequence[str]) -> list[Source]:
    """What finds the images of each PATH and, behind them, of each list.

    Raises:
        click.UsageError: a PATH is neither there nor a pattern.
    """
    return [*map(_source, paths), *(partial(_listed, name) for name in lists)]


def _source(path: str) -> Source:
    if path == STDIN:
        return lambda: iter([Found(b"", STDIN, STDIN.encode())])
    found = Path(path)
    if found.exists() or found.is_symlink():
        return lambda: _in_folder(found) if found.is_dir() else iter([_file(found)])
    if glob.has_magic(path):
        return lambda: _matching(path)
    raise click.BadParameter(f"Path {path!r} does not exist.", param_hint="'PATH...'")


def _file(path: Path) -> Found:
    return Found(b"", as_text(path.name), os.fsencode(path.absolute()))


def _in_folder(folder: Path, below: str = "") -> Iterator[Found]:
    """The images below a folder, or below one in it. Keys order them as paths are ordered: name by name, from the top."""
    base, empty, waiting = folder.absolute(), True, [below]
    while waiting:
        inner = waiting.pop()
        try:
            entries = os.scandir(base / inner)
        except OSError:
            yield _found(base, inner, is_folder=True)  # reading it says why not
            empty = False
            continue
        with entries:
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                if _is_folder(entry):
                    waiting.append(name)
                elif entry.name.lower().endswith(SUFFIXES) and _is_file(entry):
                    yield _found(base, name)
                    empty = False
    if empty and not below:
        raise RequestInvalid(f"{folder} holds no image ({', '.join(SUFFIXES)}).")


def _found(base: Path, name: str, *, is_folder: bool = False) -> Found:
    raw = os.fsencode(name)
    return Found(
        raw.replace(b"/", b"\0"), as_text(name) + ("/" if is_folder else ""), os.fsencode(f"{base}/{name}"), is_folder
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        # A link to nothing is an image that is missing, and not one that was never there.
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # reading it says why not


def _matching(pattern: str) -> Iterator[Found]:
    """What a pattern matches, named from its first part that is a pattern; folders with all that is in them."""
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
    by_kind, matched = (
        parts[-1] in ("*", "**"),
        False,
    )  # any other name was meant, DICOM files without a suffix included
    for match in glob.iglob(rest, root_dir=base, recursive=True):  # noqa: PTH207  Path.glob follows no links
        if (base / match).is_dir():
            # `**` matches the folders and what is in them: the latter is enough.
            if "**" not in pattern:
                yield from _in_folder(base, match)
                matched = True
        elif not by_kind or match.lower().endswith(SUFFIXES):
            yield _found(base.absolute(), match)
            matched = True
    if not matched:
        raise RequestInvalid(f"{pattern} matches no image ({', '.join(SUFFIXES)}).")


def _listed(name: str) -> Iterator[Found]:
    """The files that a list names, called as they are there. NUL separates them where the list begins with one, else lines."""
    with ExitStack() as stack:
        try:
            file: IO[bytes] = sys.stdin.buffer if name == STDIN else stack.enter_context(Path(name).open("rb"))
            for number, entry in enumerate(_entries(file)):
                yield Found(number.to_bytes(8, "big"), as_text(os.fsdecode(entry)), os.path.abspath(entry))  # noqa: PTH100  bytes
        except OSError as error:
            raise RequestInvalid(f"The list {name} cannot be read: {error.strerror}.") from error


def _entries(file: IO[bytes]) -> Iterator[bytes]:
    rest = file.read(_CHUNK)
    separator = b"\0" if b"\0" in rest else b"\n"
    while True:
        *whole, rest = rest.split(separator)
        yield from filter(None, (entry.removesuffix(b"\r") if separator == b"\n" else entry for entry in whole))
        chunk = file.read(_CHUNK)
        if not chunk:
            if rest:
                yield rest.removesuffix(b"\r") if separator == b"\n" else rest
            return
        rest += chunk


def enlist(journal: Journal, wanted: Sequence[Source], tell: Callable[[int], None] = lambda _: None) -> None:
    """Put all images into the journal, or none: those that it does not hold yet behind those that it holds.

    Args:
        journal: where to.
        wanted: in the order of the tables.
        tell: is called with the number of images found, now and then.

    Raises:
        RequestInvalid: a source holds no image, two inputs would have the same name, or a name belonged to another file.
    """
    with journal.listing() as db:
        db.execute("DELETE FROM outcomes WHERE position IN (SELECT position FROM inputs WHERE is_folder)")
        db.execute("DELETE FROM inputs WHERE is_folder")  # it may be possible to list it now
        db.execute("CREATE TABLE listing (source, key, name, path, is_folder)")
        count = 0
        for number, source in enumerate(wanted):
            for found in source():
                db.execute("INSERT INTO listing VALUES (?, ?, ?, ?, ?)", (number, *found))
                count += 1
                if count % _TELL_EVERY == 0:
                    tell(count)
        _check(db)
        db.execute(_ADD)
        db.execute("DROP TABLE listing")


def _check(db: sqlite3.Connection) -> None:
    twice = "SELECT name, min(path), max(path) FROM listing GROUP BY name HAVING count(*) > 1 LIMIT 1"
    if row := db.execute(twice).fetchone():
        name, one, other = row[0], as_text(os.fsdecode(row[1])), as_text(os.fsdecode(row[2]))
        if one == other:
            raise RequestInvalid(f"{one} is given twice.")
        raise RequestInvalid(
            f"{one} and {other} would both be called {name!r} in the CSV; give a folder that holds both."
        )
    moved = "SELECT i.name, i.path, l.path FROM listing l JOIN inputs i USING (name) WHERE i.path != l.path LIMIT 1"
    if row := db.execute(moved).fetchone():
        name, before, now = row[0], as_text(os.fsdecode(row[1])), as_text(os.fsdecode(row[2]))
        raise RequestInvalid(
            f"{name!r} was {before} in the run that is to be resumed, and is {now} now. Resume with the same PATHs, or give "
            "another --csv."
        )
