"""A training run from a data folder to a finished run folder; what `dermserve train` calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermserve.errors import StartupError
from dermserve.image import SIDE, preprocessing_hash
from dermserve.labels import LEAVES
from training import batches, datasets, splits, truth
from training.config import Config, validated
from training.datasets import Record
from training.finish import Finisher
from training.inference import keep_memory
from training.loop import STATE, Images, Trainer, Watcher
from training.model import create_model, require_features
from training.objective import load_teacher
from training.pixels import ShowProgress, prepared, silent

CONFIG = "config.json"


@dataclass(frozen=True)
class Request:
    """What to train on and where; `split` is a `splits.csv` that wins over the one in `data`.

    `limit` takes about so many images for training and as large a share of the others; test sets are then left out.
    """

    data: Path
    folder: Path
    cache: Path
    split: Path | None = None
    limit: int | None = None
    resume: bool = False
    max_minutes: float | None = None


def train(
    request: Request,
    config: Config,
    watcher: Watcher,
    *,
    say: Callable[[str], None],
    show: ShowProgress = silent,
) -> Path:
    """Train, adapt to 300 px, calibrate and measure; returns the path of the finished checkpoint.

    The folder then holds `config.json`, `last.pt` (to resume from), `best.pt`, `final.pt` and `card.json`. A run that
    is already trained and is resumed goes straight to finishing.

    Raises:
        StartupError: the data, the configuration or the checkpoint to resume from is not usable, or the folder holds
            another run.
    """
    if not request.resume and (request.folder / STATE).exists():
        raise StartupError(f"{request.folder} already holds a run: pass --resume to go on, or another --out.")
    resume = (
        request.resume and (request.folder / STATE).exists()
    )  # killed while images were prepared: nothing to resume
    if not resume:
        _require_start(config)  # now, not after minutes of preparing images
    if config.teacher:
        load_teacher(Path(config.teacher), metadata(config)["preprocessing"])
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts, tests = _parts(request, config, say)
    request.folder.mkdir(parents=True, exist_ok=True)
    _write(request.folder / CONFIG, config.to_json())
    records = [*parts.train, *parts.validation]
    pixels: Any = prepared(
        [record.path for record in records], request.cache, remove_artifacts=config.remove_artifacts, show=show
    )
    images = Images(
        pixels=pixels,
        targets=np.array([record.target for record in records]),
        weights=weights(config, parts.train),
        train=np.arange(len(parts.train)),
        validation=np.arange(len(parts.train), len(records)),
        content=Path(pixels.filename).resolve().stem,  # named after the bytes of all files and their preparation
    )
    limit = None if request.max_minutes is None else request.max_minutes * (1 - config.finish_share)
    trainer = Trainer(
        config,
        images,
        request.folder,
        metadata(config),
        watcher,
        device=device,
        max_minutes=limit,
        resume=resume,
    )
    if resume:
        say(f"Going on at step {trainer.progress.step}")
    trainer.fit()
    say(f"Trained on {trainer.progress.images:,} image passes; adapting, calibrating and measuring at {SIDE} px")
    return Finisher(
        request.folder, request.cache, config, parts, images, trainer.progress, tests, device, show
    ).finish()


def saved_config(folder: Path) -> Config:
    """The configuration that a run folder was started with.

    Raises:
        StartupError: the folder holds none.
    """
    path = folder / CONFIG
    if not path.exists():
        raise StartupError(f"{folder} holds no {CONFIG}: there is no run to resume.")
    return validated(json.loads(path.read_text()))


def _require_start(config: Config) -> None:
    """Fetch or look at the weights that a run starts with.

    Raises:
        StartupError: they cannot be had, or are not of this kind.
    """
    if config.initial_weights:
        require_features(Path(config.initial_weights))
    elif config.pretrained:
        create_model(
            architecture=config.architecture,
            pretrained=True,
            from_scratch_if_offline=config.from_scratch_if_offline,
        )


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a resumed run reads it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def weights(config: Config, records: list[Record]) -> batches.Weights:
    """Draw weights of the training images as the configuration wants them: float64 [N], sum 1."""
    if config.sampling == "natural":
        return batches.natural_weights(records)
    return batches.balanced_weights(records, config.melanoma_share, config.leaf_exponent, config.source_exponent)


def metadata(config: Config) -> dict[str, Any]:
    """What every checkpoint says about itself."""
    return {
        "architecture": config.architecture,
        "leaves": list(LEAVES),
        "input_size": SIDE,
        "preprocessing": preprocessing_hash(remove_artifacts=config.remove_artifacts),
        "config": config.model_dump(),
    }


def _parts(request: Request, config: Config, say: Callable[[str], None]) -> tuple[splits.Split, list[truth.TestSet]]:
    found = datasets.read(request.data)
    for note in found.notes:
        say(note)
    given = request.split or _given(request.data)
    parts = splits.split(found, given=given, seed=config.seed)
    tests = truth.find_test_sets(request.data)
    seen = {record.name.removesuffix(datasets.REDUCED) for record in found.records}
    for test in tests:
        shared = seen.intersection(name.removesuffix(datasets.REDUCED) for name in test.labels.melanoma)
        if shared:
            raise StartupError(f"{len(shared)} images of the test set {test.name} are labelled for training, too.")
    if request.limit is not None and request.limit < len(parts.train):
        parts = _limited(parts, request.limit, config.seed)
        tests = []
    left_out = len(found.records) - len(parts.train) - len(parts.validation)
    say(
        f"{len(parts.train):,} images to train, {len(parts.validation):,} to validate, {left_out:,} labelled ones unused; "
        f"split: {parts.origin}; test sets: {', '.join(test.name for test in tests) or 'none'}"
    )
    return parts, tests


def _given(data: Path) -> Path | None:
    path = data / "splits.csv"
    return path if path.exists() else None


def _limited(parts: splits.Split, limit: int, seed: int) -> splits.Split:
    """A random subset of both parts in the same proportion; groups stay apart as they were.

    At least 50 validation images are kept where there are as many: thresholds need a few melanomas.
    """
    rng = np.random.default_rng(seed)
    share = limit / len(parts.train)

    def some(records: list[Record], count: int) -> list[Record]:
        return [records[i] for i in sorted(rng.permutation(len(records))[:count])]

    return splits.Split(
        some(parts.train, limit),
        some(parts.validation, max(50, round(share * len(parts.validation)))),
        parts.groups,
        f"{parts.origin}, {limit} training images of it",
    )
