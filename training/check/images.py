"""Reads every image once, in parallel: what is damaged, how large it is, and what makes equal pictures recognisable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermserve import image
from dermserve.errors import ImageError, UnreadableFile
from training.pixels import ShowProgress, silent

THUMBNAIL: Final = 32


@dataclass(frozen=True)
class Scan:
    """What one file holds. `error` is a code of `dermserve.errors` with its detail, and all else is then empty.

    `content` and `picture` are SHA-256 of the bytes and of the decoded pixels; `thumbnail` is uint8 [32, 32], the
    grey picture inside the black frame, squashed to a square.
    """

    path: Path
    error: tuple[str, str] | None = None
    format: str = ""
    width: int = 0
    height: int = 0
    content: str = ""
    picture: str = ""
    thumbnail: NDArray[np.uint8] | None = None


def scan(paths: Sequence[Path], *, workers: int | None = None, show: ShowProgress = silent) -> list[Scan]:
    """Read and decode every file; the result is in the order of `paths`."""
    with ThreadPoolExecutor(workers) as pool:  # decoding, hashing and resizing release the GIL
        return list(show(pool.map(_scan, paths), "Reading images", len(paths)))


def _scan(path: Path) -> Scan:
    try:
        data = path.read_bytes()
    except OSError as error:
        return Scan(path, (UnreadableFile.code, error.strerror or str(error)))
    try:
        header, pixels = image.inspect(data), image.decode(data)
    except ImageError as error:
        return Scan(path, (error.code, error.detail))
    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, box=image.frame(pixels))
    return Scan(
        path,
        format=header.format,
        width=pixels.shape[1],
        height=pixels.shape[0],
        content=hashlib.sha256(data).hexdigest(),
        picture=hashlib.sha256(pixels.tobytes()).hexdigest() + f"-{pixels.shape[1]}",
        thumbnail=np.asarray(small),
    )
