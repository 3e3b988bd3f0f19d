"""How many cores this process may use, containers' limits included."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Cores by the affinity mask and by the cgroup's quota (version 2, else 1), whichever is smaller; at least 1.

    Of a quota's fraction of a core nothing is counted: an instance that is paused for most of a period delays everyone.

    Args:
        root: where /proc and /sys are found.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(root):
        cores = min(cores, quota)
    return max(1, int(cores))


def _quotas(root: Path) -> list[float]:
    """In cores, of every group that this process is in: a parent's limit binds its children, too."""
    found = []
    mounted = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            version_1 = "cpu" in controllers.split(",")
            if controllers and not version_1:
                continue
            top = mounted / "cpu" if version_1 else mounted
            here = top / group.lstrip("/")
            for folder in (here, *here.parents):
                if folder.is_relative_to(top):
                    found += _quota(folder, version_1=version_1)
    return found


def _quota(folder: Path, *, version_1: bool) -> list[float]:
    with contextlib.suppress(OSError, ValueError):  # no limit is written as "max" or -1
        if version_1:
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            period = int((folder / "cpu.cfs_period_us").read_text())
        else:
            quota, period = (int(word) for word in (folder / "cpu.max").read_text().split())
        if quota > 0:
            return [quota / period]
    return []
