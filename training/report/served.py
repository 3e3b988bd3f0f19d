"""The served model measures itself: images through Triton, figures into the model card beside its weights."""

from __future__ import annotations

import csv
import platform
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dermserve import engine
from dermserve.client import TritonClient
from dermserve.errors import ImageError, InferenceUnavailable, Overloaded, StartupError
from dermserve.image import prepare
from dermserve.labels import COLUMNS, CSV_HEADER, LEAVES
from dermserve.model_card import ModelCard
from training import truth
from training.report import data as report_data
from training.report import subgroups
from training.report.data import LabelledSet
from training.report.examine import Examiner, Found, Scored
from training.report.limits import with_measured

_IN_FLIGHT: Final = 8
_PATIENCE: Final = 20  # attempts of one image against a full queue, each up to the client's deadline
_PROBES: Final = 4
_SAME: Final = 1e-3  # between runs of the same engine; other weights are apart by far more
_MELANOMA: Final = COLUMNS.index("Melanoma")

Answers = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Reported columns [N, 4], rounded as `dermserve predict` writes them, and leaves [N, 9]."""


def measure(
    repository: Path, data: Path, urls: tuple[str, ...], *, bootstrap: int = 1000, keep: Path | None = None
) -> tuple[ModelCard, dict[str, Found], dict[str, Scored]]:
    """Score the validation images and test sets of `data` through Triton.

    Thresholds and temperature stay as they are; what the operating points reach on the validation images is measured
    anew like everything else.

    Returns:
        The repository's card with the figures of now, these figures by data set, and the scored images.

    Raises:
        StartupError: `data` is not that of these weights, an image is refused, or the server has other weights.
        InferenceUnavailable: no server answers.
    """
    card = ModelCard.read(repository)
    sets = report_data.read(data, int(card.training.get("config", {}).get("seed", 0)), card.seen)
    thresholds = {name: point.threshold for name, point in card.operating_points.items()}
    examiner = Examiner(thresholds, subgroups.read(data), bootstrap)
    found: dict[str, Found] = {}
    images: dict[str, Scored] = {}
    client = TritonClient(urls)
    try:
        require_same_weights(client, repository, sets[0].paths[:: max(1, len(sets[0].paths) // _PROBES)][:_PROBES])
        precision = client.runtime().precision
        for labelled in sets:
            columns, leaves = score(client, labelled)
            images[labelled.name] = labelled.scored(leaves, columns[:, _MELANOMA])
            found |= examiner.examine(images[labelled.name])
            if keep is not None:
                _keep(keep, labelled, columns, leaves)
    finally:
        client.close()
    return updated(card, found, precision), found, images


def updated(card: ModelCard, found: dict[str, Found], precision: str = "") -> ModelCard:
    """The card with the figures of `found` in place of all earlier ones."""
    reached = found[truth.VALIDATION_NAME].points
    return card.model_copy(
        update={
            "metrics": {name: one.metrics for name, one in found.items()},
            "evaluations": {name: one.evaluation for name, one in found.items()},
            "operating_points": {
                name: reached[name].model_copy(update={"data": point.data})
                for name, point in card.operating_points.items()
            },
            "limits": with_measured(card.limits, found),
            "measured": f"the served model{precision and f' in {precision}'}, through Triton on {platform.machine()}, "
            f"{datetime.now(UTC):%d %B %Y}",
        }
    )


def score(client: TritonClient, labelled: LabelledSet) -> Answers:
    """Columns and leaves of every image, in order.

    Raises:
        StartupError: an image is refused.
        InferenceUnavailable: no server answers.
    """

    def one(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        for attempt in range(_PATIENCE):
            try:
                answer = client.infer([path.read_bytes()], ["probabilities", "diagnoses"], bulk=True)
                return answer["probabilities"][0], answer["diagnoses"][0]
            except Overloaded:
                if attempt + 1 == _PATIENCE:
                    raise
            except ImageError as error:
                raise StartupError(f"{path.name} is refused: {error.detail}") from error
        raise InferenceUnavailable

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ThreadPoolExecutor(_IN_FLIGHT) as pool, Progress(*columns, console=Console(stderr=True)) as progress:
        results = pool.map(one, labelled.paths)
        rows = list(progress.track(results, total=len(labelled.paths), description=f"Scoring {labelled.name}"))
    reported = np.array([[float(f"{value:.6f}") for value in row] for row, _ in rows])
    return reported, np.array([leaves for _, leaves in rows], np.float64)


def require_same_weights(client: TritonClient, repository: Path, paths: list[Path]) -> None:
    """Refuse a server that answers otherwise than the repository's engine of its precision does here.

    A running stack serves the copy that it made when it started, so an export in between is not served yet.

    Raises:
        StartupError: an answer differs.
        InferenceUnavailable: no server answers.
    """
    card, precision = ModelCard.read(repository), client.runtime().precision
    again = "Start the server again after an export."
    if precision not in engine.available(card):
        raise StartupError(f"The server has other weights than {repository}, which has no {precision} engine. {again}")
    removed = card.remove_artifacts
    model = engine.load(repository, precision)
    for path in paths:
        data = path.read_bytes()
        served = client.infer([data], ["probabilities"], bulk=True)["probabilities"][0]
        own = model.infer(prepare(data, remove_artifacts=removed).pixels[None])["probabilities"][0]
        if np.abs(served - own).max() > _SAME:
            raise StartupError(
                f"The server has other weights than {repository}: {path.name} is {served[_MELANOMA]:.4f} there and "
                f"{own[_MELANOMA]:.4f} here. {again}"
            )


def _keep(folder: Path, labelled: LabelledSet, columns: NDArray[np.float64], leaves: NDArray[np.float64]) -> None:
    """`NAME.csv` as `dermserve predict` writes it, and `NAME.leaves.csv` with the nine leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, header, values in ((".csv", CSV_HEADER, columns), (".leaves.csv", ("filename", *LEAVES), leaves)):
        with (folder / f"{labelled.name}{suffix}").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for path, row in zip(labelled.paths, values, strict=True):
                writer.writerow((path.name, *(f"{value:.6f}" for value in row)))
