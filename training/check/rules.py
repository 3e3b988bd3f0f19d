"""What rows and pictures say about each other: labels that conflict, and groups that cross a division."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from training.check.findings import Report
from training.check.tables import Entry, Tables, by_id
from training.datasets import MARKED_DUPLICATE


@dataclass(frozen=True)
class Pair:
    """Two images (by id) that show the same picture. `exact`: the same pixels. `why`: in words, for the report."""

    first: str
    second: str
    exact: bool
    why: str


def conflict(first: Entry, second: Entry) -> bool:
    """Whether two labels cannot both be right.

    "unknown" of ISIC 2020 is any benign lesion, HAM10000's `akiec` is AK or SCC, and a test set says no more than
    melanoma or not.
    """
    if first.melanoma is not None and second.melanoma is not None and first.melanoma != second.melanoma:
        return True
    leaves = {first.leaf, second.leaf}
    if None in leaves or len(leaves) == 1:
        return False
    if "BENIGN_NOS" in leaves:
        return bool(leaves & {"BCC", "SCC"})
    return not ("akiec" in (first.diagnosis, second.diagnosis) and leaves == {"AK", "SCC"})


def tables(found: Tables, report: Report) -> None:
    """One image in several tables."""
    for name, entries in by_id(found.entries):
        for first, second in combinations(entries, 2):
            where = f"{_label(first)} in {first.place}, {_label(second)} in {second.place}"
            if first.is_test != second.is_test:
                report.add("test_image_in_training", name, where)
            if conflict(first, second):
                report.add("label_conflict_tables", name, where)
            elif first.is_test == second.is_test:
                report.add("labelled_twice", name, where)
        files = sorted({entry.path for entry in _trained(entries) if entry.path})
        if len(files) > 1:
            report.add("image_ambiguous", files, f"each table has its own file {name}; training refuses that")


def _trained(entries: Iterable[Entry]) -> list[Entry]:
    """Those of one id that training makes an image of: HAM10000 gives way to ISIC 2019."""
    usable = [entry for entry in entries if entry.leaf]
    told = any(entry.dataset == "isic2019" for entry in usable)
    return [entry for entry in usable if not told or entry.dataset != "ham10000"]


def lesions(found: Tables, report: Report) -> None:
    """Photographs of one lesion must carry one diagnosis."""
    members: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in found.entries:
        if entry.lesion:
            members[entry.lesion].setdefault(entry.id, entry)
    for lesion, by_name in members.items():
        entries = list(by_name.values())
        if any(conflict(first, second) for first, second in combinations(entries, 2)):
            listed = ", ".join(f"{entry.name} {_label(entry)}" for entry in entries)
            report.add("label_conflict_lesion", [_file(entry) for entry in entries], f"lesion {lesion}: {listed}")


def labels_of_pairs(found: Tables, pairs: Iterable[Pair], report: Report) -> None:
    """The same picture must carry one diagnosis, be it found in the pixels or on the duplicates list."""
    labelled = {name: entries[0] for name, entries in by_id(found.entries)}
    for pair in pairs:
        first, second = labelled.get(pair.first), labelled.get(pair.second)
        if first and second and conflict(first, second):
            code = "label_conflict_duplicate" if pair.exact else "label_conflict_similar"
            text = f"{pair.why}: {first.name} is {_label(first)}, {second.name} {_label(second)}"
            report.add(code, [_file(first), _file(second)], text)


def groups(found: Tables, pairs: Iterable[Pair], report: Report) -> None:
    """No lesion, patient, group of splits.csv or picture may stand in two parts or folds.

    Without a splits.csv, training's own division keeps groups whole, but test sets stand outside it.
    """
    parts, folds, files = dict[str, str](), dict[str, str](), dict[str, Path | str]()
    marked = {entry.id for entry in found.entries if entry.fold == MARKED_DUPLICATE}
    for entry in found.entries:
        files.setdefault(entry.id, _file(entry))
        if entry.is_test:
            parts[entry.id] = f"test set {entry.dataset.removeprefix('test:')}"
        elif entry.id in found.parts:
            parts[entry.id] = found.parts[entry.id][1]
        elif found.splits is None and entry.leaf and entry.id not in marked:
            parts.setdefault(entry.id, "training data")
        if entry.fold is not None and entry.fold != MARKED_DUPLICATE and entry.dataset == "isic2020":
            folds[entry.id] = f"tfrecord {entry.fold}"
    for name, (_, part) in found.parts.items():
        parts.setdefault(name, part)
    for placed in (parts, folds):
        for what, names in _groups(found):
            text = _crossing(names, placed)
            if text:
                report.add("group_crosses", _files(names, placed, files), f"{what} – {text}")
        for pair in pairs:
            names = {pair.first, pair.second}
            text = _crossing(names, placed)
            if text:
                code = "group_crosses" if pair.exact else "group_crosses_similar"
                report.add(code, _files(names, placed, files), f"{pair.why} – {text}")


def _groups(found: Tables) -> Iterator[tuple[str, set[str]]]:
    members: dict[str, set[str]] = defaultdict(set)
    for entry in found.entries:
        if entry.lesion:
            members[f"lesion {entry.lesion}"].add(entry.id)
        if entry.patient:
            members[f"patient {entry.patient}"].add(entry.id)
    for entry in found.entries:
        # A test set's group_id is a lesion or a patient; one of neither may only number that set's own groups.
        for key in (f"lesion {entry.group}", f"patient {entry.group}"):
            if entry.group and key in members:
                members[key].add(entry.id)
    for name, (group, _) in found.parts.items():
        if group:
            members[f"group_id {group} of splits.csv"].add(name)
    yield from members.items()


def _crossing(names: set[str], placed: dict[str, str]) -> str:
    """Which of the names stand where, if they stand on several sides; else nothing."""
    sides: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names & placed.keys()):
        sides[placed[name]].append(name)
    if len(sides) < 2:
        return ""
    return "; ".join(f"{side}: {', '.join(members)}" for side, members in sorted(sides.items()))


def _files(names: set[str], placed: dict[str, str], files: dict[str, Path | str]) -> list[Path | str]:
    return [files.get(name, name) for name in sorted(names & placed.keys())]


def _label(entry: Entry) -> str:
    if entry.is_test:
        return {True: "melanoma", False: "no melanoma", None: "unlabelled"}[entry.melanoma]
    return entry.diagnosis or "unlabelled"


def _file(entry: Entry) -> Path | str:
    return entry.path or entry.name


def splits(found: Tables, report: Report) -> None:
    """Rows that splits.csv lacks or has to spare, and groups that it cuts in pieces."""
    if found.splits is None:
        return
    labelled = {entry.id: entry for entry in found.entries if entry.fold != MARKED_DUPLICATE}
    for name, entry in labelled.items():
        if not entry.is_test and entry.leaf and entry.path and name not in found.parts:
            report.add("split_missing", entry.path, f"{entry.place}; no row in {found.splits.name}")
    for name in found.parts:
        if name not in labelled:
            report.add("split_without_label", name, found.splits.name)
    for what, names in _groups(found):
        its = {found.parts[name][0] for name in names if name in found.parts}
        if len(its) > 1:
            report.add("split_group_differs", sorted(names), f"{what}: {', '.join(sorted(its))}")
