"""The whole check of a folder; what `dermserve data check` calls."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dermserve.errors import StartupError
from training.check import files, images, metadata, official, pictures, rules, tables
from training.check.findings import Report
from training.check.folder import below
from training.pixels import ShowProgress, silent


def check(
    root: Path,
    *,
    fingerprints: official.Fingerprints | None = None,
    allowed: Collection[str] = (),
    workers: int | None = None,
    show: ShowProgress = silent,
) -> Report:
    """Read every table and image at or below `root` and report what is wrong; changes nothing.

    Args:
        root: a folder with any of the layouts that `datasets.read` knows.
        fingerprints: of official labels; default: the committed ones (`official.load`).
        allowed: codes that count as notes.
        workers: threads that read images; default: Python's own choice.
        show: progress bar.

    Raises:
        StartupError: there is no such folder, or it holds no image and no known table.
    """
    if not root.is_dir():
        raise StartupError(f"There is no folder {root}; pass the folder that holds the images and their tables.")
    report = Report(root, frozenset(allowed))
    inside = below(root, report)
    found, paths = tables.read(inside, report), files.images(inside)
    if not paths and not found.kinds:
        raise StartupError(f"{root} holds neither an image nor a table that dermserve knows (see docs/data.md).")
    files.match(found, paths, report)
    scans = images.scan(paths, workers=workers, show=show)
    files.labels(found, scans, report)
    files.pixels(scans, report)
    files.copies(scans, report)
    chosen = files.representatives(found, scans)
    pairs = pictures.pairs(found, chosen, report)
    rules.tables(found, report)
    rules.lesions(found, report)
    rules.labels_of_pairs(found, pairs, report)
    rules.groups(found, pairs, report)
    rules.splits(found, report)
    metadata.check(found, report)
    verified = official.check(found.entries, official.load() if fingerprints is None else fingerprints, report)
    report.facts = {
        "tables": len(found.kinds),
        "label rows": len(found.entries),
        "image files": len(paths),
        "labels compared with the official ones": verified,
    }
    return report
