"""Every file below a folder as training finds them, without giving up where a folder cannot be read."""

from __future__ import annotations

from pathlib import Path

from training import layouts
from training.check.findings import Report


def below(root: Path, report: Report) -> list[Path]:
    """All files at or below `root` in order; see `layouts.files`."""

    def unreadable(error: OSError) -> None:
        report.add("folder_unreadable", Path(error.filename), error.strerror or str(error))

    return layouts.files(root, unreadable)
