"""Do the labels at hand agree with the official ones? Fingerprints of the official label rows tell.

`official_labels.bin` holds seven bytes for each image: five that stand for set and id, two for its label, each from a
SHA-256. The table holds no labels, only what is needed to check one: a wrong label passes by accident once in 65,536.
It was made from the official tables by

    python -m training.check.official DIR

and covers the images of ISIC 2019, ISIC 2020 and the ISIC 2017 test set that DIR held; of other images nothing is said.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

from training.check.findings import Report
from training.check.folder import below
from training.check.tables import Entry, read
from training.layouts import ISIC_2019_CODES, ISIC_2020_DIAGNOSES, few

_FILE: Final = Path(__file__).with_name("official_labels.bin")
_KEY, _LABEL = 5, 2
_LABELS: Final = {
    "isic2019": (*ISIC_2019_CODES, "UNK"),
    "isic2020": tuple(ISIC_2020_DIAGNOSES),
    "melanoma": ("0", "1"),
}

Fingerprints = dict[bytes, bytes]


@cache
def load() -> Fingerprints:
    """The committed fingerprints: key of an image → digest of its label."""
    data, size = _FILE.read_bytes(), _KEY + _LABEL
    return {data[i : i + _KEY]: data[i + _KEY : i + size] for i in range(0, len(data), size)}


def check(entries: Iterable[Entry], official: Fingerprints, report: Report) -> int:
    """Report labels that are not the official ones; returns how many images the official tables knew."""
    known = 0
    wrong: list[tuple[Entry, str]] = []
    for entry in entries:
        namespace, label = _named(entry)
        digest = official.get(_key(namespace, entry.id))
        if digest is None or not label:
            continue
        known += 1
        if digest != _digest(namespace, entry.id, label):
            candidates = [other for other in _LABELS[namespace] if _digest(namespace, entry.id, other) == digest]
            wrong.append((entry, candidates[0] if candidates else "another"))
    others: dict[tuple[Path, str, str], list[str]] = defaultdict(list)
    for entry, right in wrong:
        others[entry.table, _named(entry)[1], right].append(entry.name)
    for entry, right in wrong:
        label = _named(entry)[1]
        swapped = others[entry.table, right, label]
        text = f"{entry.place}: {label}, officially {right}"
        report.add(
            "label_not_official",
            entry.path or entry.name,
            f"{text}; as if swapped with {few(swapped)}" if swapped else text,
        )
    return known


def fingerprints(entries: Iterable[Entry]) -> bytes:
    """What `official_labels.bin` holds for these rows, sorted.

    Raises:
        ValueError: two images would share a key.
    """
    found: dict[bytes, bytes] = {}
    count: dict[bytes, set[str]] = defaultdict(set)
    for entry in entries:
        namespace, label = _named(entry)
        if label:
            key = _key(namespace, entry.id)
            found[key] = _digest(namespace, entry.id, label)
            count[key].add(entry.id)
    if any(len(names) > 1 for names in count.values()):
        raise ValueError("two images share a key; make the keys longer")
    return b"".join(key + found[key] for key in sorted(found))


def _named(entry: Entry) -> tuple[str, str]:
    """Namespace and label of a row; the label is empty where the official tables cannot tell (HAM10000's akiec)."""
    if entry.is_test:
        return "melanoma", {True: "1", False: "0", None: ""}[entry.melanoma]
    if entry.dataset == "ham10000":
        return "isic2019", "" if entry.diagnosis == "akiec" else entry.leaf or ""
    return entry.dataset, entry.diagnosis


def _key(namespace: str, name: str) -> bytes:
    return hashlib.sha256(f"{namespace} {name}".encode()).digest()[:_KEY]


def _digest(namespace: str, name: str, label: str) -> bytes:
    return hashlib.sha256(f"{namespace} {name} {label}".encode()).digest()[:_LABEL]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    report = Report(folder)
    made = fingerprints(read(below(folder, report), report).entries)
    _FILE.write_bytes(made)
    sys.stdout.write(f"{_FILE.name}: {len(made) // (_KEY + _LABEL)} labels, {len(made)} bytes\n")
