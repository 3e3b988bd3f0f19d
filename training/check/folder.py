"""Every file below a folder, linked folders included."""

from __future__ import annotations

from pathlib import Path

from training.check.findings import Report


def below(root: Path, report: Report) -> list[Path]:
    """All files at or below `root` in order; links to folders are followed, but not back to where they came from."""
    found: list[Path] = []
    _visit(root, frozenset({root.resolve()}), found, report)
    return found


def _visit(folder: Path, above: frozenset[Path], found: list[Path], report: Report) -> None:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        report.add("folder_unreadable", folder, error.strerror or str(error))
        return
    for path in inside:
        if not path.is_dir():
            found.append(path)
        elif path.resolve() not in above:
            _visit(path, above | {path.resolve()}, found, report)
