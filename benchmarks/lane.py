"""One person's uploads while a bulk stream fills the server, against the same person's on an idle server.

The person sends as the upload page does, with a session; the stream comes with an API key. The stream must be at full
strength before the person's window begins and after it ends, and every one of its images must be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.alternation import Series, alternate
from benchmarks.closed_loop import Window, drive
from benchmarks.images import endless
from benchmarks.senders import Http, Session, logged_in
from benchmarks.stack import Stack
from dermserve.errors import StartupError

_PAUSE_S = 0.05
_SETTLE_S = 4.0
_SPARE_S = 8.0  # processes do not start at the same moment


@dataclass(frozen=True)
class Lane:
    """`p95`: of the person beside the stream, its references the p95 on the idle server around it, in ms."""

    p95: Series[Window]
    idle: list[Window]
    bulk: list[Window]


def measure(
    stack: Stack,
    files: Sequence[bytes],
    *,
    senders: int,
    seconds: float,
    rounds: int,
    announce: Callable[[str], None] = lambda _: None,
) -> Lane:
    """Take idle and busy windows in turn.

    Raises:
        StartupError: nothing was answered, or the stream did not cover the person's window.
    """
    person = Session(stack.url, *logged_in(stack.url))
    idle: list[Window] = []
    bulk: list[Window] = []

    def alone() -> float:
        idle.append(drive(person, endless(files), senders=1, seconds=seconds, warm_up_s=1.0, pause_s=_PAUSE_S))
        return _p95(idle[-1])

    def beside() -> Window:
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(
                drive, Http(stack.url, stack.api_key), endless(files),
                senders=senders, seconds=seconds + _SPARE_S, warm_up_s=1.0,
            )  # fmt: skip
            window = drive(person, endless(files), senders=1, seconds=seconds, warm_up_s=_SETTLE_S, pause_s=_PAUSE_S)
            bulk.append(stream.result())
        if not (bulk[-1].began <= window.began and window.ended <= bulk[-1].ended):
            raise StartupError("The bulk stream did not cover the interactive window: this machine is too busy.")
        return window

    found = alternate({"beside a bulk stream": beside}, alone, _p95, rounds=rounds, announce=announce)
    return Lane(found.series["beside a bulk stream"], idle, bulk)


def _p95(window: Window) -> float:
    if not window.ms:
        raise StartupError(f"The interactive uploader got no answer: {window.faults}")
    return window.percentiles()["p95"]
