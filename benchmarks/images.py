"""Images for load runs: real or drawn lesions, and any number of files that differ in bytes but not in one pixel.

A server answers a repeat of the same bytes from its database, so a load run needs new bytes for every image. A JPEG
comment is the cheapest way: no decoder looks at it.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dermserve import sample
from dermserve.errors import StartupError
from dermserve.settings import REPOSITORY_ROOT

REAL = REPOSITORY_ROOT.parent / "shared/data/load"
_DRAWN = 16
_COMMENT = b"\xff\xfe"
_MAX_COMMENT = 65_533  # a segment's two-byte length counts itself (ITU-T T.81 §B.2.4.5)


class Pictures(NamedTuple):
    """JPEG files, and what a result says about them."""

    files: list[bytes]
    source: str


def pictures(folder: Path | None = None) -> Pictures:
    """The JPEG files of `folder`; without one, those of `../shared/data/load`, and where that is absent, drawn ones.

    Raises:
        StartupError: the folder holds no JPEG file.
    """
    if folder is None and not REAL.is_dir():
        files = drawn(_DRAWN)
        return Pictures(files, f"{_DRAWN} drawn 600×450 JPEGs, mean {_mean_kb(files)} KB")
    found = sorted(path for path in (folder or REAL).glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise StartupError(f"{folder or REAL} holds no JPEG file.")
    files = [path.read_bytes() for path in found]
    return Pictures(files, f"{len(files)} JPEGs of {(folder or REAL).resolve().name}/, mean {_mean_kb(files)} KB")


def drawn(count: int) -> list[bytes]:
    """The first `count` drawn lesion images as JPEG files; about 60 ms each."""
    return [sample.jpeg(seed) for seed in range(count)]


def stamped(jpeg: bytes, text: str) -> bytes:
    """The same JPEG picture with `text` as a comment segment: other bytes, identical pixels.

    Raises:
        ValueError: not a JPEG file, or the text is too long for one segment.
    """
    comment = text.encode()
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG file")
    if len(comment) > _MAX_COMMENT:
        raise ValueError(f"a comment holds at most {_MAX_COMMENT} bytes")
    at = 2
    while jpeg[at] == 0xFF and 0xE0 <= jpeg[at + 1] <= 0xEF:  # JFIF and EXIF want to come first
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + _COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[at:]


class _Endless:
    """Safe to read from several threads. A copy in another process begins a run of its own, so that no file repeats."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files
        self._run = secrets.token_hex(8)
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        number = next(self._numbers)
        return stamped(self._files[number % len(self._files)], f"dermserve load run {self._run}, image {number}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _Endless, (self._files,)


def endless(files: Sequence[bytes]) -> Iterator[bytes]:
    """The pictures over and over, no two files alike: not within this run, and not between runs or processes."""
    return _Endless(files)


class Batches:
    """Tuples of `size` pictures, for a client that sends several in one request."""

    def __init__(self, source: Iterator[bytes], size: int) -> None:
        self._source = source
        self._size = size

    def __iter__(self) -> Iterator[tuple[bytes, ...]]:
        return self

    def __next__(self) -> tuple[bytes, ...]:
        return tuple(itertools.islice(self._source, self._size))


def _mean_kb(files: Sequence[bytes]) -> int:
    return round(sum(map(len, files)) / len(files) / 1000)
