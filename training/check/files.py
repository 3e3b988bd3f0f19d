"""Which file belongs to which row, and what is wrong with the files themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from dermserve.image import SIDE
from training.check.findings import Report
from training.check.images import Scan
from training.check.likeness import correlation, is_flat
from training.check.tables import Entry, Tables, by_id
from training.datasets import MARKED_DUPLICATE
from training.layouts import IMAGE_SUFFIXES, few, plain

_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".dcm": "dicom"}
_SAME_PICTURE = 0.85  # 150 full-size originals correlate with their reduced and recoloured copies by 0.93 or more
_UNIFORM_FROM, _UNIFORM_SHARE = 50, 0.98
_LONGEST = 3.0


def images(inside: Iterable[Path]) -> list[Path]:
    """Those of the files that are images."""
    return [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def match(found: Tables, paths: Iterable[Path], report: Report) -> None:
    """Give each row its file, as training does: by stem, at or below the folder of the row's table."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[plain(path.stem)].append(path)
    for entry in found.entries:
        here = [path for path in by_stem[entry.id] if path.is_relative_to(entry.table.parent)]
        exact = [path for path in here if path.stem == entry.name]
        chosen = exact or here
        if len(chosen) > 1:
            report.add("image_ambiguous", chosen, f"{entry.place}: {entry.name} could be any of these")
        if chosen:
            entry.path = chosen[0]
        if entry.fold == MARKED_DUPLICATE:
            report.add("duplicate_marked", entry.path or entry.name, entry.place)
    have_2019 = {entry.id for entry in found.entries if entry.dataset == "isic2019"}
    for entry in found.entries:
        second_opinion = entry.dataset == "ham10000" and entry.id in have_2019
        if not entry.path and entry.fold != MARKED_DUPLICATE and not second_opinion:
            report.add(
                "image_missing", entry.name, f"{entry.place}: no file {entry.name}.jpg below {entry.table.parent}"
            )


def labels(found: Tables, scans: Iterable[Scan], report: Report) -> None:
    """Files that no row names, and unknown tables that seem to hold the labels of some."""
    used = {entry.path for entry in found.entries if entry.path}
    folders = {path.parent for path in used}
    labelled = {entry.id for entry in found.entries}
    foreign: dict[Path, list[str]] = defaultdict(list)
    for scan in scans:
        if scan.path in used:
            continue
        if scan.path.parent in folders and plain(scan.path.stem) not in labelled:
            report.add("label_missing", scan.path, "no table has a row for it")
        elif scan.path.parent not in folders:
            name = plain(scan.path.stem)
            copy = "another copy of a labelled image" if name in labelled else "no labelled set is here"
            report.add("image_unlisted", scan.path, copy)
            for table, names in found.unknown.items():
                if name in names and name not in labelled and scan.path.is_relative_to(table.parent):
                    foreign[table].append(name)
    for table, images_ in foreign.items():
        report.add("images_unused", table, f"{len(images_)} images here that only this table names: {few(images_)}")


def pixels(scans: Iterable[Scan], report: Report) -> None:
    """Damage, sizes and formats."""
    folders: dict[Path, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.error:
            report.add(scan.error[0], scan.path, scan.error[1])
            continue
        folders[scan.path.parent].append(scan)
        if scan.thumbnail is not None and is_flat(scan.thumbnail):
            report.add("image_blank", scan.path, f"{scan.width}×{scan.height} pixels of one colour")
        if scan.format != _FORMATS[scan.path.suffix.lower()]:
            report.add("suffix_wrong", scan.path, f"its bytes are {scan.format}")
        if max(scan.width, scan.height) > _LONGEST * min(scan.width, scan.height):
            report.add("dimensions_odd", scan.path, f"{scan.width}×{scan.height} pixels")
    for folder, inside in folders.items():
        sizes = Counter((scan.width, scan.height) for scan in inside)
        (usual, count), several = sizes.most_common(1)[0], len(inside)
        if several >= _UNIFORM_FROM and _UNIFORM_SHARE * several <= count < several:
            for scan in inside:
                if (scan.width, scan.height) != usual:
                    text = f"{scan.width}×{scan.height} pixels; {count} of {several} here are {usual[0]}×{usual[1]}"
                    report.add("dimensions_odd", scan.path, text)
        small = sum(min(scan.width, scan.height) < SIDE for scan in inside)
        if small:
            common = ", ".join(f"{width}×{height}" for (width, height), _ in sizes.most_common(3))
            report.add("images_enlarged", folder, f"{small} of {several} images; sizes: {common}")


def copies(scans: Iterable[Scan], report: Report) -> None:
    """Several files of one id must show one picture, whatever their size."""
    by_name: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.thumbnail is not None:
            by_name[plain(scan.path.stem)].append(scan)
    for first, *others in by_name.values():
        for other in others:
            assert first.thumbnail is not None
            assert other.thumbnail is not None
            alike = correlation(first.thumbnail, other.thumbnail)
            if alike < _SAME_PICTURE:
                report.add("copy_differs", [first.path, other.path], f"their grey levels correlate by {alike:.2f} only")


def representatives(found: Tables, scans: Iterable[Scan]) -> dict[str, Scan]:
    """One readable file for each id: the labelled one where there is one."""
    by_path = {scan.path: scan for scan in scans if scan.thumbnail is not None}
    chosen: dict[str, Scan] = {}
    for name, entries in by_id(found.entries):
        paths = [entry.path for entry in entries if entry.path in by_path]
        if paths and paths[0]:
            chosen[name] = by_path[paths[0]]
    for path, scan in by_path.items():
        chosen.setdefault(plain(path.stem), scan)
    return chosen


def entry_of(found: Tables) -> dict[str, Entry]:
    """The first row of each id."""
    return {name: entries[0] for name, entries in by_id(found.entries)}
