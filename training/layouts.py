"""The layouts in which dermoscopy sets are published: their columns, diagnoses and file names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dermserve.errors import StartupError

ISIC_2019_CODES: Final = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")

ISIC_2020_DIAGNOSES: Final = {
    "melanoma": "MEL",
    "nevus": "NV",
    "seborrheic keratosis": "BKL",
    "lichenoid keratosis": "BKL",
    "solar lentigo": "BKL",
    "lentigo NOS": "BKL",
    "cafe-au-lait macule": "BENIGN_NOS",
    # Indeterminate in the ISIC Archive's taxonomy. AK is the only leaf that reports as Suspicious, so this single
    # image of the training set goes there for the sake of the reported column.
    "atypical melanocytic proliferation": "AK",
    "unknown": "BENIGN_NOS",
}
"""The `diagnosis` strings of ISIC 2020. All but melanoma carry target 0; "unknown" is a benign lesion without a name."""

HAM10000_DIAGNOSES: Final = {
    "akiec": "AK",  # actinic keratoses and Bowen's disease; ISIC 2019 tells the two apart as AK and SCC
    "bcc": "BCC",
    "bkl": "BKL",
    "df": "DF",
    "mel": "MEL",
    "nv": "NV",
    "vasc": "VASC",
}
"""The `dx` codes of HAM10000."""

REDUCED: Final = "_downsampled"
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".dcm"})
KINDS: Final = {
    "isic2019": {"image", "MEL", "NV"},
    "isic2020": {"image_name", "patient_id", "diagnosis", "target"},
    "ham10000": {"image_id", "lesion_id", "dx"},
    "duplicates": {"image_name_1", "image_name_2"},
    "splits": {"image", "group_id", "split"},
    "test": {"image", "melanoma"},
    "metadata": {"image", "age_approx"},
}
"""What a table is, by the columns it has; the first that fits."""

_SHOWN: Final = 5


def kind(columns: Iterable[str]) -> str | None:
    """Which of `KINDS` a table with these columns is, or None."""
    have = set(columns)
    return next((name for name, needed in KINDS.items() if needed <= have), None)


def plain(name: str) -> str:
    """An official id without the `_downsampled` that some copies carry."""
    return name.removesuffix(REDUCED)


def index(folder: Path) -> dict[str, list[Path]]:
    """Image files at or below a folder by stem."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def find(name: str, images: dict[str, list[Path]]) -> Path | None:
    """The image of an id; copies of ISIC 2019 circulate with and without the `_downsampled` of the official ids."""
    other = name.removesuffix(REDUCED) if name.endswith(REDUCED) else name + REDUCED
    paths = images.get(name) or images.get(other) or []
    if len(paths) > 1:
        raise StartupError(f"The image {name} is ambiguous: {few([str(path) for path in paths])}.")
    return paths[0] if paths else None


def refuse(names: list[str], what: str, table: Path) -> None:
    """Raise a StartupError that names some of the images, if there are any."""
    if names:
        raise StartupError(f"{len(names)} of the images in {table} {what}: {few(names)}.")


def few(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def header(path: Path) -> set[str]:
    """The names in the first line of a CSV file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return set(next(csv.reader(file), []))


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def once(path: Path, column: str) -> list[dict[str, str]]:
    """The rows of a table in which each image stands once.

    Raises:
        StartupError: one stands in it more often.
    """
    found = rows(path)
    repeated = [name for name, count in Counter(row[column] for row in found).items() if count > 1]
    if repeated:
        raise StartupError(f"{path.name}: {len(repeated)} image ids are labelled more than once: {few(repeated)}.")
    return found
