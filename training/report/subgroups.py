"""Sex, age band and anatomical site of images, from the official tables, and which subgroups can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dermserve.errors import StartupError
from dermserve.model_card import image_id
from training.truth import read_rows, stem

MINIMUM: Final = 10
"""Melanomas, and other images, that a subgroup must hold: below, an interval spans almost everything."""

UNKNOWN: Final = "unknown"
_IMAGE: Final = ("image", "image_name", "isic_id")
_SITE: Final = ("anatom_site_general", "anatom_site_general_challenge")
_AGES: Final = ((30, "under 30"), (45, "30 to 44"), (60, "45 to 59"), (75, "60 to 74"))
_OLDEST: Final = "75 and over"


@dataclass(frozen=True)
class Subject:
    """What is recorded of the person and place in one image; `unknown` where it is not."""

    sex: str = UNKNOWN
    age: str = UNKNOWN
    site: str = UNKNOWN


KINDS: Final = tuple(field.name for field in fields(Subject))


def read(path: Path) -> dict[str, Subject]:
    """Subjects by image id (`model_card.image_id`): of all tables at or below a folder, or of a file and its
    neighbours `…Metadata.csv`.

    ISIC 2019's metadata, ISIC 2020's train.csv and any table with columns of the same names are read; a table without
    them is passed over.
    """
    tables = path.rglob("*.csv") if path.is_dir() else [path, *path.parent.glob("*Metadata.csv")]
    return _read(tables)


def read_around(images: Iterable[Path]) -> dict[str, Subject]:
    """Subjects of images in the official layouts: from the tables in their folder and in the one above."""
    folders = {folder for parent in {image.parent for image in images} for folder in (parent, parent.parent)}
    return _read(table for folder in folders for table in folder.glob("*.csv"))


def members(names: Sequence[str], subjects: Mapping[str, Subject]) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Rows of each subgroup by kind: {"sex": {"female": rows, …}, …}; kinds of which nothing is known are left out."""
    found = [subjects.get(image_id(name), Subject()) for name in names]
    groups: dict[str, dict[str, NDArray[np.int64]]] = {}
    for kind in KINDS:
        values = np.array([getattr(subject, kind) for subject in found])
        if set(values) - {UNKNOWN}:
            known = sorted(set(values), key=lambda value: (value == UNKNOWN, _order(value)))
            groups[kind] = {str(value): np.flatnonzero(values == value) for value in known}
    return groups


def too_small(truth: NDArray[np.bool_]) -> bool:
    """Whether a subgroup with this truth holds too few melanomas, or too few others, to be measured."""
    return min(int(truth.sum()), int((~truth).sum())) < MINIMUM


def _read(tables: Iterable[Path]) -> dict[str, Subject]:
    subjects: dict[str, Subject] = {}
    for table in sorted(tables):
        try:
            rows = read_rows(table)
        except (StartupError, ValueError):  # without rows, or not text: none of ours
            continue
        image = next((column for column in _IMAGE if column in rows[0]), None)
        site = next((column for column in _SITE if column in rows[0]), "")
        if image is None or not (site or {"sex", "age_approx"} & rows[0].keys()):
            continue
        for row in rows:
            subjects[image_id(stem(row[image] or ""))] = Subject(
                _sex(row.get("sex")), _age(row.get("age_approx")), _site(row.get(site))
            )
    return subjects


def _sex(text: str | None) -> str:
    value = (text or "").strip().lower()
    return value if value in {"female", "male"} else UNKNOWN


def _age(text: str | None) -> str:
    try:
        years = float(text or "nan")
    except ValueError:
        return UNKNOWN
    if not 0 <= years < 150:
        return UNKNOWN
    return next((band for below, band in _AGES if years < below), _OLDEST)


def _site(text: str | None) -> str:
    """ISIC 2019 divides the torso, ISIC 2020 does not: one name for both, or years would be compared, not sites."""
    value = (text or "").strip().lower()
    if not value or value == "nan":
        return UNKNOWN
    return "torso" if value.endswith("torso") else value


def _order(value: str) -> tuple[int, str]:
    bands = [band for _, band in _AGES] + [_OLDEST]
    return (bands.index(value) if value in bands else 0, value)
