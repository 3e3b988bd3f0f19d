"""Prepared pixels on disk: every image passes `dermserve.image.prepare` once, into one memory-mapped array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermserve import image
from dermserve.errors import ImageError, StartupError

Pixels = NDArray[np.uint8]
ShowProgress = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""Wraps an iterable (items, label, total) to show a progress bar."""


def silent(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
    """A `ShowProgress` that shows nothing."""
    del label, total
    yield from items


def prepared(paths: list[Path], folder: Path, *, workers: int | None = None, show: ShowProgress = silent) -> Pixels:
    """The prepared images as a read-only memory map, uint8 [N, 300, 300, 3]; made now, or found in `folder`.

    The array's name holds the preprocessing and each file's path, size and time of change, so that a changed image or
    another decoder never meets old pixels.

    Raises:
        StartupError: an image is refused by `image.prepare`; the message names the file and the reason.
    """
    file = folder / f"prepared-{_key(paths)}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(paths, file, workers, show)
    pixels: Pixels = np.load(file, mmap_mode="r")
    return pixels


def reduced(pixels: Pixels, rows: NDArray[np.int64], side: int, *, show: ShowProgress = silent) -> Pixels:
    """Copy `rows` of prepared images in memory, made smaller with antialiasing: uint8 [len(rows), side, side, 3]."""
    out = np.empty((len(rows), side, side, 3), np.uint8)
    for position, row in enumerate(show(rows, f"Reducing to {side} px", len(rows))):
        small = Image.fromarray(pixels[row]).resize((side, side), Image.Resampling.BILINEAR)
        out[position] = np.asarray(small)
    return out


def _make(paths: list[Path], file: Path, workers: int | None, show: ShowProgress) -> None:
    partial = file.with_suffix(".partial.npy")
    shape = (len(paths), image.SIDE, image.SIDE, 3)
    out: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        partial, mode="w+", dtype=np.uint8, shape=shape
    )

    def make(position: int) -> str | None:
        try:
            out[position] = image.prepare(paths[position].read_bytes()).pixels
        except ImageError as error:
            return f"{paths[position].name}: {error.detail}"
        return None

    # Threads suffice: JPEG decoding and resizing release the GIL.
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(make, range(len(paths)))
        refused = [fault for fault in show(results, "Preparing images", len(paths)) if fault]
    if refused:
        partial.unlink()
        raise StartupError(f"{len(refused)} images cannot be used: {'; '.join(refused[:5])}")
    out.flush()
    partial.replace(file)


def _key(paths: list[Path]) -> str:
    listing = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([image.preprocessing_hash(), listing]).encode()).hexdigest()[:24]
