"""The images that an export is measured on: prepared once, labelled where the data folder has labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from dermserve import sample
from dermserve.errors import StartupError
from dermserve.image import prepare
from dermserve.model_card import ModelCard
from export.parity import Images
from training import datasets
from training.report import data as labelled

_SUFFIXES: Final = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Data:
    """What a data folder gives: images to calibrate on, and labelled ones to be judged on, validation first."""

    calibration: list[NDArray[np.uint8]]
    sets: dict[str, Images]


REAL, DRAWN = 300, 64
"""How many images a parity check takes unless told."""


def chosen(images: Path | None, data: Path | None, count: int | None, *, removed: bool) -> Images:
    """`count` images of the folder `images`, else of the folder `data`, else drawn ones."""
    root = images or data
    return folder(root, count or REAL, removed=removed) if root else generated(count or DRAWN, removed=removed)


def generated(count: int, *, removed: bool) -> Images:
    """Drawn lesions, for a machine without photographs."""
    return Images("generated lesion images", _prepared((sample.jpeg(seed) for seed in range(count)), removed))


def folder(path: Path, count: int, *, removed: bool) -> Images:
    """`count` images spread evenly over a folder.

    Raises:
        StartupError: the folder holds none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise StartupError(f"{path} holds no JPEG or PNG image.")
    step = max(1, len(files) // count)
    chosen = files[::step][:count]
    return Images(f"{len(chosen)} of the images of {path.name}", _prepared(_bytes(chosen), removed, len(chosen)))


def read(root: Path, card: ModelCard, calibration: int) -> Data:
    """Validation images, test sets, and `calibration` training images of the data that the weights were trained on.

    The training images are spread evenly over the sorted ids, so over the sources, too.

    Raises:
        StartupError: the folder is not the data of these weights, or the card does not tell which images they saw.
    """
    seen, removed = card.seen, card.remove_artifacts
    if seen is None:
        raise StartupError("The card of these weights does not tell which images they were trained on; train again.")
    sets = labelled.read(root, int(card.training.get("config", {}).get("seed", 0)), seen)
    records = {record.name: record.path for record in datasets.read(root).records}
    trained = sorted(seen.trained_on(records))
    chosen = [records[name] for name in trained[:: max(1, len(trained) // calibration)][:calibration]]
    return Data(
        _prepared(_bytes(chosen), removed, len(chosen)),
        {one.name: Images(one.name, _prepared(_bytes(one.paths), removed, len(one.paths)), one.truth) for one in sets},
    )


def _bytes(paths: Sequence[Path]) -> Iterable[bytes]:
    return (path.read_bytes() for path in paths)


def _prepared(encoded: Iterable[bytes], removed: bool, count: int | None = None) -> list[NDArray[np.uint8]]:
    with ThreadPoolExecutor() as pool, Progress(console=Console(stderr=True), transient=True) as progress:
        done = pool.map(lambda data: prepare(data, remove_artifacts=removed).pixels, encoded)
        return list(progress.track(done, total=count, description="Preparing images"))
