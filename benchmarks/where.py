"""Where the processor time of one image goes: user and system time of every process of a stack, divided by its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.closed_loop import Send, Window, drive
from benchmarks.stack import Stack

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Spent:
    """Milliseconds of processor time per image by part, and the window they were spent in."""

    ms: Mapping[str, float]
    window: Window

    @property
    def total(self) -> float:
        """Of all parts, the load generator included."""
        return sum(self.ms.values())


def measure(
    stack: Stack, connect: Callable[[], Send], pictures: Iterator[Any], *, senders: int, seconds: float
) -> Spent:
    """Send for `seconds` and see what each process of `stack` used meanwhile.

    The machine is idle before and after, and no warm-up is left out: all that is answered is all that was paid for, but
    for what was under way at the end.
    """
    drive(connect, pictures, senders=senders, seconds=0.5, warm_up_s=0.5)
    before = _used(stack.processes())
    window = drive(connect, pictures, senders=senders, seconds=seconds, warm_up_s=0.0)
    after = _used(stack.processes())
    images = max(1, len(window.ms))
    ms = {part: 1e3 * (after[part] - before[part]) / images for part in sorted(after)}
    ms["load generator"] = 1e3 * window.client_cores * window.seconds / images
    return Spent({part: spent for part, spent in ms.items() if spent >= 0.005}, window)


def _used(processes: Sequence[psutil.Process]) -> Counter[str]:
    """Seconds by part."""
    found: Counter[str] = Counter()
    for process in processes:
        try:
            times = process.cpu_times()
            found[part(process.cmdline())] += times.user + times.system
        except psutil.Error:
            continue
    return found


def part(command: Sequence[str]) -> str:
    """Which part of the stack a process is, by its command line."""
    line = " ".join(command)
    if _STUB in line:
        return "melanoma (Triton's stubs)"
    for mark, name in (("tritonserver", "tritonserver"), ("uvicorn", "web server"), ("postgres", "PostgreSQL")):
        if mark in line:
            return name
    return "supervisor"
