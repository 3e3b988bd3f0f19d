"""The same picture under two names: equal bytes, equal pixels, or alike; and whether somebody already says so."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

from training.check import likeness
from training.check.files import entry_of
from training.check.findings import Report
from training.check.images import Scan
from training.check.rules import Pair
from training.check.tables import Entry, Tables
from training.datasets import MARKED_DUPLICATE

_KNOWN = Path(__file__).with_name("known_duplicates.csv")
"""Exact duplicates inside the official sets that the official list of ISIC 2020 does not name."""


def pairs(found: Tables, chosen: dict[str, Scan], report: Report) -> list[Pair]:
    """Report every two ids that show the same picture; returns them with the listed pairs whose images are here.

    Exact duplicates pass only where a duplicates list names them, because training would weigh them twice; alike
    pictures also where they share a lesion, a patient or a group of splits.csv, because then they cannot leak.
    """
    lists, rows = _lists([*found.duplicates, *_known()]), entry_of(found)
    result: dict[frozenset[str], Pair] = {}
    for code, first, second in _exact(chosen):
        pair = frozenset((first, second))
        why = "the same bytes" if code == "duplicate_file" else "the same pixels"
        result[pair] = Pair(first, second, True, why)
        _report(report, code, chosen, result[pair], _marked(rows, first, second) or _listed(lists, first, second))
    names = sorted(chosen)
    thumbnails = np.stack([_thumbnail(chosen[name]) for name in names]) if names else np.zeros((0, 32, 32), np.uint8)
    for i, j, value in likeness.pairs(thumbnails):
        first, second = names[i], names[j]
        pair = frozenset((first, second))
        if pair not in result:
            result[pair] = Pair(first, second, False, f"alike (correlation {value:.3f})")
            reason = _marked(rows, first, second) or _listed(lists, first, second)
            _report(report, "near_duplicate", chosen, result[pair], reason or _joined(found, rows, first, second))
    for first, second in found.duplicates:
        if first in chosen and second in chosen:
            pair = frozenset((first, second))
            result[pair] = Pair(first, second, True, "listed as duplicates")
    return list(result.values())


def _exact(chosen: dict[str, Scan]) -> Iterator[tuple[str, str, str]]:
    """(code, first id, another id) for every two ids of one picture: any of three may be the one without a label."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in sorted(chosen):
        same[chosen[name].picture].append(name)
    for names in same.values():
        for first, second in combinations(names, 2):
            bytes_too = chosen[first].content == chosen[second].content
            yield "duplicate_file" if bytes_too else "duplicate_pixels", first, second


def _report(report: Report, code: str, chosen: dict[str, Scan], pair: Pair, reason: str) -> None:
    text = f"{pair.why}; {reason}" if reason else pair.why
    files = [chosen[pair.first].path, chosen[pair.second].path]
    report.add("duplicate_known" if reason else code, files, text)


def _marked(rows: dict[str, Entry], first: str, second: str) -> str:
    folds = {rows[name].fold for name in (first, second) if name in rows}
    return "one is marked by tfrecord −1" if MARKED_DUPLICATE in folds else ""


def _lists(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """For each listed id all that the lists join it with, directly or through others, as training does."""
    joined: dict[str, set[str]] = {}
    for first, second in pairs:
        both = joined.get(first, {first}) | joined.get(second, {second})
        joined |= dict.fromkeys(both, both)
    return joined


def _listed(lists: dict[str, set[str]], first: str, second: str) -> str:
    return "listed as duplicates" if second in lists.get(first, ()) else ""


def _joined(found: Tables, rows: dict[str, Entry], first: str, second: str) -> str:
    if first in rows and second in rows:
        for what in ("lesion", "patient"):
            value = getattr(rows[first], what)
            if value and value == getattr(rows[second], what):
                return f"both of {what} {value}"
    groups = [found.parts[name][0] for name in (first, second) if name in found.parts]
    return f"both in group_id {groups[0]}" if len(groups) == 2 and groups[0] == groups[1] else ""


def _thumbnail(scan: Scan) -> likeness.Grey:
    assert scan.thumbnail is not None
    return scan.thumbnail


@cache
def _known() -> list[tuple[str, str]]:
    with _KNOWN.open(newline="") as file:
        return [(row["image_name_1"], row["image_name_2"]) for row in csv.DictReader(file)]
