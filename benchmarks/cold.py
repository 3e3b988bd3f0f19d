"""A cold start: how long until the first prediction, and how much memory the whole stack then holds.

It starts the very command that a person starts, with a state folder and ports of its own, and stops all of it again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import target
from benchmarks.images import drawn, endless
from benchmarks.stack import Stack, memory, starting


@dataclass(frozen=True)
class Start:
    """One start. Times in seconds since the process was started; memory in GiB over all `processes`.

    `first_prediction_s` is when the first 201 had arrived; on a first start it includes making an API key
    (`key_s`), which needs a second Python process. `rss_gib` counts a page once per process that maps it, `pss_gib`
    once in all; the bound is on the larger. `left_behind`: processes that outlived SIGTERM.
    """

    ready_s: float
    key_s: float
    first_prediction_s: float
    predictions: int
    faults: int
    rss_gib: float
    pss_gib: float
    processes: int
    stopped_s: float
    left_behind: int

    def as_rows(self) -> dict[str, Any]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def measure(*, starts: int, predictions: int) -> list[Start]:
    """Start `starts` times on the same state folder, one after the other: the first one also sets up the database.

    Raises:
        StartupError: the stack ended, or did not become ready in time.
    """
    pictures = endless(drawn(8))
    with tempfile.TemporaryDirectory(prefix="dermserve-cold-") as state:
        key, found = "", []
        for _ in range(starts):
            key, start = _start_once(Path(state), key, pictures, predictions)
            found.append(start)
        return found


def problems(starts: Sequence[Start], *, max_seconds: float, max_gib: float) -> list[str]:
    """What is beyond the bounds or went wrong, as lines for people; empty when all is well."""
    lines = []
    for number, start in enumerate(starts, 1):
        if start.first_prediction_s > max_seconds:
            lines.append(f"start {number}: the first prediction took {start.first_prediction_s:.1f} s")
        if start.rss_gib > max_gib:
            lines.append(f"start {number}: {start.rss_gib:.2f} GiB are resident")
        if start.faults:
            lines.append(f"start {number}: {start.faults} of {start.predictions} predictions were wrong")
        if start.left_behind:
            lines.append(f"start {number}: {start.left_behind} processes outlived the stack and were killed")
    return lines


def _start_once(state: Path, key: str, pictures: Iterator[bytes], predictions: int) -> tuple[str, Start]:
    began = time.perf_counter()
    with starting(state) as stack:
        stack.until_ready()
        ready_s = time.perf_counter() - began
        key_s = 0.0
        if key:
            stack.api_key = key
        else:
            key = stack.create_key()
            key_s = time.perf_counter() - began - ready_s
        faults = int(_predict(stack, next(pictures)) is not None)
        first_prediction_s = time.perf_counter() - began
        faults += sum(_predict(stack, next(pictures)) is not None for _ in range(predictions - 1))
        members = stack.processes()
        rss, pss = memory(members)
        stopping = time.perf_counter()
        left = stack.stop()
        stopped_s = time.perf_counter() - stopping
    start = Start(
        ready_s, key_s, first_prediction_s, predictions, faults,
        rss / 2**30, pss / 2**30, len(members), stopped_s, len(left),
    )  # fmt: skip
    return key, start


def _predict(stack: Stack, picture: bytes) -> str | None:
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {stack.api_key}"}
    status, body = stack.request("POST", "/v1/predictions", picture, headers)
    return target.fault(status, body, picture)
