"""The layouts in which dermoscopy sets are published: columns, diagnoses, file names, and how their tables are read."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
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

LABELS: Final = "labels.csv"  # a test set's table, by its name; its columns are those that `truth.read_labels` knows
REDUCED: Final = "_downsampled"
MARKED_DUPLICATE: Final = -1  # as a tfrecord
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".dcm"})
KINDS: Final = (
    ("isic2019", {"image", "MEL", "NV"}),
    ("isic2020", {"image_name", "patient_id", "diagnosis", "target"}),
    ("ham10000", {"image_id", "lesion_id", "dx"}),
    ("duplicates", {"image_name_1", "image_name_2"}),
    ("splits", {"image", "group_id", "split"}),
    ("test", {"image", "melanoma"}),
    ("metadata", {"image", "age_approx"}),
    ("metadata", {"image", "lesion_id"}),
)
"""What a table is, by the columns it has; the first that fits."""
COLUMNS: Final = dict(reversed(KINDS))
"""The columns of each kind, of several the first."""
NOTHING: Final = frozenset({"", "-1", "-1.0", "nan", "na", "n/a", "none", "null", "unknown"})
"""What stands for "not known" in columns of ids, sexes and sites, in lower case."""

_SHOWN: Final = 5
_HAM10000: Final = "ham10000_metadata"  # published without a suffix
_HEADER_BYTES: Final = 65_536


def kind(columns: Iterable[str]) -> str | None:
    """Which of `KINDS` a table with these columns is, or None."""
    have = set(columns)
    return next((name for name, needed in KINDS if needed <= have), None)


def plain(name: str) -> str:
    """An official id without the `_downsampled` that some copies carry."""
    return name.removesuffix(REDUCED)


def known(text: str | None) -> str | None:
    """The text, or None where it stands for "not known"."""
    return None if text is None or text.strip().lower() in NOTHING else text.strip()


def _unreadable(error: OSError) -> None:
    raise StartupError(f"{error.filename} cannot be read: {error.strerror}.") from error


def files(folder: Path, unreadable: Callable[[OSError], None] = _unreadable) -> list[Path]:
    """Every file at or below a folder, sorted; linked folders are followed, and no folder is entered twice.

    `unreadable` is told of a folder that cannot be read; as it is, it raises StartupError.
    """
    found, seen, starts = list[Path](), set[str](), deque([folder])
    while starts:
        for inside, folders, names in os.walk(starts.popleft(), onerror=unreadable):
            if (real := os.path.realpath(inside)) in seen:
                folders.clear()
                continue
            seen.add(real)
            # macOS leaves a "._" file beside each one that it copies to a foreign disk.
            found += [Path(inside, name) for name in names if not name.startswith("._")]
            # os.walk names linked folders but stays outside; last, so that a folder keeps its own path where it has one.
            starts += [path for name in folders if (path := Path(inside, name)).is_symlink()]
    return sorted(path for path in found if path.is_file())


def tables(folder: Path) -> list[Path]:
    """Every table at or below a folder, sorted."""
    return [path for path in files(folder) if path.suffix.lower() == ".csv" or path.name.lower().startswith(_HAM10000)]


def index(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, list[Path]]:
    """Image files at or below a folder by stem."""
    found: dict[str, list[Path]] = {}
    for path in files(folder):
        if path.suffix.lower() in suffixes:
            found.setdefault(path.stem, []).append(path)
    return found


def find(name: str, images: dict[str, list[Path]]) -> Path | None:
    """The image of an id; copies of ISIC 2019 circulate with and without the `_downsampled` of the official ids.

    Raises:
        StartupError: it could be any of several files.
    """
    other = name.removesuffix(REDUCED) if name.endswith(REDUCED) else name + REDUCED
    paths = images.get(name) or images.get(other) or []
    if len(paths) > 1 and len({path.resolve() for path in paths}) > 1:
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
    """The names in the first line of a CSV file.

    Raises:
        StartupError: it cannot be read, or is not UTF-8.
    """
    with _readable(path), path.open("rb") as file:
        # Of bytes, so that only this line must be UTF-8: tables of other people lie about as well.
        first = file.readline(_HEADER_BYTES).splitlines()[:1]
        return set(next(csv.reader([line.decode("utf-8-sig") for line in first]), []))


def rows(path: Path, *needed: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, without space around the values.

    Raises:
        StartupError: it cannot be read, is not UTF-8, lacks one of the `needed` columns, or a row is cut off.
    """
    found = list[dict[str, str]]()
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if lacking := [column for column in needed if column not in columns]:
            raise StartupError(f"{path} lacks {', '.join(lacking)}; its columns are {','.join(columns) or 'none'}.")
        for row in reader:
            if None in row.values():
                raise StartupError(f"{path} line {reader.line_num} is cut off: it needs {len(columns)} columns.")
            found.append({key: value.strip() for key, value in row.items() if key})
    return found


def once(path: Path, column: str) -> list[dict[str, str]]:
    """The rows of a table in which each image stands once.

    Raises:
        StartupError: one stands in it more often, or see `rows`.
    """
    found = rows(path)
    repeated = [name for name, count in Counter(plain(row[column]) for row in found).items() if count > 1]
    if repeated:
        raise StartupError(f"{path.name}: {len(repeated)} image ids are labelled more than once: {few(repeated)}.")
    return found


def binary(text: str, what: str, path: Path) -> bool:
    """A label: 0 or 1, however many decimals it has.

    Raises:
        StartupError: it is anything else; the message says `what` it should have been.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise StartupError(f"{path}: {what} is {text!r}, neither 0 nor 1.")
    return value == 1.0


def tfrecord(row: dict[str, str], table: Path) -> int | None:
    """The fold of a row in the Kaggle layout of ISIC 2020, or `MARKED_DUPLICATE`; None in the other layouts.

    Raises:
        StartupError: it is no whole number of −1 or more.
    """
    text = row.get("tfrecord")
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer() or value < MARKED_DUPLICATE:  # neither nan nor inf is an integer
        raise StartupError(f"{table}: the tfrecord of {row['image_name']} is {text!r}, no whole number of -1 or more.")
    return int(value)


def source_2019(name: str, lesion: str | None, tfrecord: int | None = None) -> str:
    """The collection within ISIC 2019, which names none, but the lesion ids' prefixes do (HAM_…, BCN_…, MSK4…).

    Without lesions, in the Kaggle layout, even tfrecords hold BCN20000, and HAM10000's ids are a range of their own.
    """
    if lesion and lesion.startswith("HAM"):
        return "HAM10000"
    if lesion and lesion.startswith("BCN"):
        return "BCN20000"
    if tfrecord is not None and not lesion:
        if tfrecord >= 0 and tfrecord % 2 == 0:
            return "BCN20000"
        if "ISIC_0024306" <= name <= "ISIC_0034320":
            return "HAM10000"
    return "ISIC2017"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeError, csv.Error) as error:
        raise StartupError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error
