"""Prepared pixels on disk: every image passes `dermserve.image.prepare` once, into one memory-mapped array."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermserve import image
from dermserve.errors import ImageError, StartupError

Pixels = NDArray[np.uint8]
Array = np.memmap[Any, np.dtype[np.uint8]]
ShowProgress = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""Wraps an iterable (items, label, total) to show a progress bar."""


_FLUSH_EVERY = 256


def silent(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
    """A `ShowProgress` that shows nothing."""
    del label, total
    yield from items


def prepared(
    paths: list[Path],
    folder: Path,
    *,
    remove_artifacts: bool = False,
    workers: int | None = None,
    show: ShowProgress = silent,
) -> Pixels:
    """The prepared images as a read-only memory map, uint8 [N, 300, 300, 3]; made now, or found in `folder`.

    The array is named after the preprocessing and the bytes of all files in their order, so that a changed image or
    another decoder never meets old pixels. A link named after paths, sizes and times of change leads to it, so that
    the bytes need not be read each time; where that is missing (another checkout, new times) they are. An interrupted
    run goes on where it was; a second one at the same time waits for the first. `remove_artifacts` as for
    `image.prepare`.

    Raises:
        StartupError: an image cannot be read or is refused by `image.prepare`, or the disk has no room for the array;
            the message names the file and the reason.
    """
    seen = folder / f"prepared-{_key(paths, remove_artifacts)}.npy"
    if not seen.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"prepared-{_content_key(paths, remove_artifacts, workers, show)}.npy"
        with _alone(file):
            if not file.exists():
                _make(paths, file, remove_artifacts, workers, show)
            _link(seen, file)
    elif not _named_by_content(seen):  # made before arrays were named after contents
        file = folder / f"prepared-{_content_key(paths, remove_artifacts, workers, show)}.npy"
        with _alone(file):
            _link(file, seen)
    pixels: Pixels = np.load(seen, mmap_mode="r")
    return pixels


def reduced(pixels: Pixels, rows: NDArray[np.int64], side: int, *, show: ShowProgress = silent) -> Pixels:
    """Copy `rows` of prepared images in memory, made smaller with antialiasing: uint8 [len(rows), side, side, 3]."""
    out = np.empty((len(rows), side, side, 3), np.uint8)
    for position, row in enumerate(show(rows, f"Reducing to {side} px", len(rows))):
        small = Image.fromarray(pixels[row]).resize((side, side), Image.Resampling.BILINEAR)
        out[position] = np.asarray(small)
    return out


def _make(paths: list[Path], file: Path, remove_artifacts: bool, workers: int | None, show: ShowProgress) -> None:
    partial, marks = file.with_suffix(".partial.npy"), file.with_suffix(".done")
    out = _opened(partial, marks, len(paths))
    done = np.memmap(marks, np.uint8, "r+")

    def make(position: int) -> str | None:
        try:
            out[position] = image.prepare(paths[position].read_bytes(), remove_artifacts=remove_artifacts).pixels
        except ImageError as error:
            return f"{paths[position].name}: {error.detail}"
        except OSError as error:
            return f"{paths[position]}: {error.strerror}"
        return None

    def results(pool: ThreadPoolExecutor) -> Iterator[str | None]:
        todo = np.flatnonzero(np.asarray(done) == 0)
        yield from [None] * (len(paths) - len(todo))
        for start in range(0, len(todo), _FLUSH_EVERY):
            batch = todo[start : start + _FLUSH_EVERY]
            faults = list(pool.map(make, batch))
            out.flush()  # pixels reach the disk before the marks that vouch for them
            done[[row for row, fault in zip(batch, faults, strict=True) if fault is None]] = 1
            done.flush()
            yield from faults

    # Threads suffice: JPEG decoding and resizing release the GIL.
    with ThreadPoolExecutor(workers) as pool:
        refused = [fault for fault in show(results(pool), "Preparing images", len(paths)) if fault]
    if refused:
        partial.unlink()
        marks.unlink()
        raise StartupError(f"{len(refused)} images cannot be used: {'; '.join(refused[:5])}")
    partial.replace(file)
    marks.unlink()


def _opened(partial: Path, marks: Path, count: int) -> Array:
    """The array that an interrupted run left or a new one, with all of its room on the disk.

    Writing to a sparse file would end in a bus error when the disk is full.
    """
    try:
        out = _left(partial, marks, count)
        if out is None:
            out = _new(partial, marks, count)
        else:
            _reserve(partial, out)
    except OSError as error:
        size = math.prod(_shape(count)) / 1e9
        raise StartupError(f"{partial.parent} cannot take {size:.1f} GB of pixels: {error.strerror}.") from error
    return out


def _left(partial: Path, marks: Path, count: int) -> Array | None:
    """What an interrupted run left, if array and marks are whole."""
    if not partial.exists() or not marks.exists() or marks.stat().st_size != count:
        return None
    size = partial.stat().st_size  # before NumPy fills up a file that is too short
    try:
        out: Array = np.lib.format.open_memmap(partial, mode="r+")  # type: ignore[no-untyped-call]
    except (ValueError, EOFError):
        return None
    whole = out.dtype == np.uint8 and out.shape == _shape(count) and out.offset + out.nbytes == size
    return out if whole else None


def _new(partial: Path, marks: Path, count: int) -> Array:
    """An array and then marks that say that nothing is done: older marks would vouch for pixels that are not there."""
    marks.unlink(missing_ok=True)
    try:
        out: Array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            partial, mode="w+", dtype=np.uint8, shape=_shape(count)
        )
        _reserve(partial, out)
        marks.write_bytes(bytes(count))
    except OSError:
        partial.unlink(missing_ok=True)
        marks.unlink(missing_ok=True)
        raise
    return out


def _reserve(partial: Path, out: Array) -> None:
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with partial.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, out.offset + out.nbytes)


def _shape(count: int) -> tuple[int, int, int, int]:
    return count, image.SIDE, image.SIDE, 3


def _key(paths: list[Path], remove_artifacts: bool) -> str:
    preprocessing = image.preprocessing_hash(remove_artifacts=remove_artifacts)
    listing = []
    for path in paths:
        with _readable(path):
            about = path.stat()
            listing.append((str(path.resolve()), about.st_size, about.st_mtime_ns))
    return hashlib.sha256(json.dumps([preprocessing, listing]).encode()).hexdigest()[:24]


def _content_key(paths: list[Path], remove_artifacts: bool, workers: int | None, show: ShowProgress) -> str:
    preprocessing = image.preprocessing_hash(remove_artifacts=remove_artifacts)

    def digest(path: Path) -> str:
        with _readable(path):
            return hashlib.sha256(path.read_bytes()).hexdigest()

    with ThreadPoolExecutor(workers) as pool:
        digests = list(show(pool.map(digest, paths), "Comparing images with the cache", len(paths)))
    return hashlib.sha256(json.dumps([preprocessing, digests]).encode()).hexdigest()[:24]


def _named_by_content(seen: Path) -> bool:
    """Whether a link leads from a file to its other name, in one direction or the other."""
    return seen.is_symlink() or any(
        path.is_symlink() and path.readlink().name == seen.name for path in seen.parent.glob("prepared-*.npy")
    )


def _link(link: Path, file: Path) -> None:
    if not link.exists():
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.symlink_to(file.name)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the file system says against a file into a StartupError that names it."""
    try:
        yield
    except OSError as error:
        raise StartupError(f"The image {path} cannot be read: {error.strerror}.") from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process makes this file; the lock ends with its process, however that ends."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
