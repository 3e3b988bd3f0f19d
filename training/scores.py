"""What `dermserve evaluate` measures: a table of predictions against a table of labels. Needs no torch."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dermserve.errors import StartupError
from dermserve.labels import CSV_HEADER
from dermserve.model_card import OperatingPoint, SeenImages
from training.report import data as report_data
from training.report import subgroups
from training.report.examine import TEST, UNKNOWN, VALIDATION, Found, Scored
from training.report.subgroups import Subject
from training.truth import stem

OTHER = "other"
_SHOWN = 5
_POINTS = TypeAdapter(dict[str, OperatingPoint])
TrainingImages = Literal["refuse", "leave-out", "allow"]
"""What becomes of images that the weights were trained on: their figures would say nothing about new images."""


@dataclass(frozen=True)
class Joined:
    """Predictions with their labels, and what is known of the people.

    `left_out` counts images that only one of both files has; `notes` are for people.
    """

    images: Scored
    subjects: dict[str, Subject]
    left_out: int
    notes: list[str]


def join(
    predictions: Path,
    labels: Path,
    *,
    partial: bool = False,
    seen: SeenImages | None = None,
    training_images: TrainingImages = "refuse",
) -> Joined:
    """Match predictions and labels by file stem.

    Args:
        predictions: CSV with exactly the columns of `labels.CSV_HEADER`.
        labels: see `truth.read_labels`; or a data folder as for training, of which the scored images are taken.
        partial: score the images that are in both, instead of refusing where one file has more.
        seen: the images that the weights have seen, where the card knows.
        training_images: what becomes of those that the weights were trained on.

    Raises:
        StartupError: a header or a row's number of fields is wrong, an image stands twice, an image lacks its
            counterpart, a probability is not in 0…1, images were trained on, or the labels hold no melanoma or nothing
            else.
    """
    scores = read_predictions(predictions)
    truth, sources = report_data.read_labels(labels)
    unlabelled = [name for name in scores if name not in truth.melanoma]
    unscored = [name for name in truth.melanoma if name not in scores]
    if not partial:
        _refuse(unlabelled, f"{predictions} scores", f"have no label in {labels}")
        if labels.is_file():
            _refuse(unscored, f"{labels} labels", f"have no prediction in {predictions}")
    names = [name for name in truth.melanoma if name in scores]
    if not names:
        raise StartupError(f"{predictions} and {labels} have no image in common.")
    names, role, notes = _unseen(names, seen, training_images)
    images = Scored(
        # A test set's table is always called labels.csv; its folder says which it is.
        labels.resolve().parent.name if labels.name == "labels.csv" else labels.name,
        role,
        names,
        np.array([truth.melanoma[name] for name in names]),
        np.array([scores[name] for name in names]),
        [truth.groups[name] for name in names],
        sources=[sources.get(name, OTHER) for name in names] if sources else (),
    )
    if images.truth.all() or not images.truth.any():
        raise StartupError(f"{labels} needs both melanomas and other images for these figures to have a meaning.")
    left_out = len(unlabelled) + (len(unscored) if labels.is_file() else 0)
    return Joined(images, subgroups.read(labels), left_out, notes)


def read_predictions(path: Path) -> dict[str, float]:
    """P(melanoma) by image stem, in the file's order; see `join` for what is refused."""
    scores: dict[str, float] = {}
    for line, fields in _lines(path):
        # Read by position: an unquoted comma in a file name would else shift Malignant into Melanoma's place.
        if len(fields) != len(CSV_HEADER):
            raise StartupError(f"{path}: line {line} has {len(fields)} fields, not {len(CSV_HEADER)}.")
        name, text = stem(fields[0]), fields[CSV_HEADER.index("Melanoma")]
        if name in scores:
            raise StartupError(f"{path} scores {name} more than once.")
        try:
            scores[name] = float(text)
        except ValueError:
            scores[name] = -1.0
        if not 0 <= scores[name] <= 1:
            raise StartupError(f"{path}: the melanoma probability of {name} is {text!r}, not in 0…1.")
    return scores


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The rows below the header with their line numbers; blank lines are passed over."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, fields) for fields in reader if fields]
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StartupError(f"{path} is no CSV file: {error}.") from error
    if len(lines) < 2:
        raise StartupError(f"{path} holds no rows.")
    if tuple(lines[0][1]) != CSV_HEADER:
        raise StartupError(f"{path} has the header {','.join(lines[0][1])}; it must be {','.join(CSV_HEADER)}.")
    return lines[1:]


def to_json(found: dict[str, Found], joined: Joined) -> str:
    """The figures as indented JSON: `metrics`, `operating_points` and what else was measured; `sources` have the same."""
    whole = found[joined.images.name]
    content = {
        **_content(whole),
        "sources": {
            name.removeprefix(f"{joined.images.name}/"): _content(one)
            for name, one in found.items()
            if one is not whole
        },
        "left_out": joined.left_out,
        "notes": joined.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _content(found: Found) -> dict[str, Any]:
    metrics = {name: figure.model_dump() for name, figure in found.metrics.items()}
    return {"metrics": metrics, **found.evaluation.model_dump()}


def card_points(path: Path) -> dict[str, OperatingPoint]:
    """The operating points of a model card, also of the `card.json` of a run that is not exported yet.

    Raises:
        StartupError: the file is missing or is no model card.
    """
    content = _card(path)
    try:
        return _POINTS.validate_python(content["operating_points"])
    except (KeyError, ValidationError) as error:
        raise StartupError(f"{path} is not a model card with operating points.") from error


def card_seen(path: Path) -> SeenImages | None:
    """The list of seen images of a model card, None where it keeps none; see `card_points`."""
    seen = _card(path).get("seen")
    try:
        return None if seen is None else SeenImages.model_validate(seen)
    except ValidationError as error:
        raise StartupError(f"{path} has a list of seen images that is not valid.") from error


def _card(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StartupError(f"There is no model card at {path}.") from error
    except json.JSONDecodeError as error:
        raise StartupError(f"{path} is not a model card with operating points.") from error
    if not isinstance(content, dict):
        raise StartupError(f"{path} is not a model card with operating points.")
    return content


def _unseen(
    names: list[str], seen: SeenImages | None, training_images: TrainingImages
) -> tuple[list[str], str, list[str]]:
    """The images to measure, what they were to the weights, and notes; see `join`."""
    if seen is None:
        return names, UNKNOWN, ["Whether these images were trained on is unknown: the card keeps no list of them."]
    trained, fixed = seen.trained_on(names), set(seen.fixed_on(names))
    if trained and training_images == "refuse":
        raise StartupError(
            f"{len(trained):,} of the {len(names):,} images were trained on ({_few(trained)}): figures on them say "
            "nothing about new images. Pass --training-images leave-out to measure the others."
        )
    notes = []
    role = VALIDATION if fixed else TEST
    if trained and training_images == "leave-out":
        names = [name for name in names if name not in set(trained)]
        notes.append(f"Left out, because the weights were trained on them: {len(trained):,} images.")
        if not names:
            raise StartupError("The weights were trained on all of these images: nothing is left to measure.")
    elif trained:
        role = f"{len(trained):,} of the images were trained on: these figures say nothing about new images"
        notes.append(f"{len(trained):,} of these images were trained on: the figures say nothing about new images.")
    if fixed:
        notes.append(f"{len(fixed):,} of these are validation images: temperature and thresholds were fixed on them.")
    return names, role, notes


def _refuse(names: list[str], who: str, what: str) -> None:
    if names:
        raise StartupError(f"{who} {len(names)} images that {what}: {_few(names)}. Pass --partial to leave them out.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
