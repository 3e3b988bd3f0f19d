"""Images that arrive when they arrive, whether or not the server keeps up: what a closed loop cannot show.

Arrivals are a Poisson process drawn from a seed. Latency counts from the moment an image was due, not from the moment it
was sent, so that a stall is felt by every image that was due during it. Runs in a process of its own, on asyncio.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import target
from benchmarks.closed_loop import cpu_seconds
from benchmarks.senders import address, head, parse_head
from dermserve.errors import StartupError

_IDLE_S = 2.0  # a server closes idle connections; older ones are not used again
_LARGEST_HEAD = 65_536


class Outcome(NamedTuple):
    """One image: when it was due (s after the window began), and ms from then to the whole answer.

    `kind`: `right`; `refused`, which is 429 or 503 with a `Retry-After`; `wrong`, which is anything else.
    """

    due: float
    ms: float
    kind: Literal["right", "refused", "wrong"]
    fault: str | None = None


@dataclass(frozen=True)
class Run:
    """What came of the images of one run; `rate` in images/s is what was asked for.

    `outcomes` also holds those of the warm-up, with a negative `due`; percentiles and counts leave them out, but for
    wrong answers, of which none is passed over.
    `late_ms` is the p99 of how long after its due time an image was really sent: the generator's own lateness, which is
    part of every latency. `client_cores` as in `closed_loop.Window`.
    """

    rate: float
    seconds: float
    outcomes: tuple[Outcome, ...]
    late_ms: float = 0.0
    client_cores: float = 0.0

    @property
    def counted(self) -> list[Outcome]:
        """The images that were due within the window."""
        return [one for one in self.outcomes if one.due >= 0]

    def count(self, kind: str) -> int:
        return sum(one.kind == kind for one in (self.outcomes if kind == "wrong" else self.counted))

    @property
    def faults(self) -> dict[str, int]:
        """Every kind of answer that was not right, and how often it came."""
        return dict(Counter(one.fault for one in self.outcomes if one.fault is not None).most_common(20))

    def percentile(self, percent: float) -> float:
        """Latency in ms that this share of all images did not exceed; one without a right answer took for ever."""
        ms = [one.ms if one.kind == "right" else math.inf for one in self.counted]
        return float(np.percentile(ms, percent, method="inverted_cdf")) if ms else math.inf

    def goodput(self, within_ms: float) -> float:
        """Right answers within `within_ms` of the moment their image was due, by the seconds in which they came.

        Only answers that came within the window count: what a queue still gives afterwards was not served in it.
        """
        return (
            sum(
                one.kind == "right" and one.ms <= within_ms and 0 <= one.due + one.ms / 1e3 <= self.seconds
                for one in self.outcomes
            )
            / self.seconds
        )

    def as_rows(self, within_ms: float) -> dict[str, float | int | None]:
        return {
            "rate": round(self.rate, 2),
            **{f"p{percent}_ms": _finite(self.percentile(percent)) for percent in (50, 95, 99)},
            "goodput": round(self.goodput(within_ms), 2),
            "n": len(self.counted),
            "right": self.count("right"),
            "refused": self.count("refused"),
            "wrong": self.count("wrong"),
            "late_ms": round(self.late_ms, 1),
            "client_cores": round(self.client_cores, 3),
        }


def _finite(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Times in [0, `seconds`) of a Poisson process of `rate` per second."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, size=max(16, int(rate * seconds * 2) + 64))
    times = np.cumsum(gaps)
    while times[-1] < seconds:
        times = np.concatenate([times, times[-1] + np.cumsum(rng.exponential(1 / rate, size=gaps.size))])
    return times[times < seconds]


@dataclass(frozen=True)
class Target:
    """Where images go: the HTTP API at `url`, with `headers` beside its own."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0


def drive(
    to: Target, pictures: Iterator[bytes], *, rate: float, seconds: float, seed: int, warm_up_s: float = 2.0
) -> Run:
    """Send for `warm_up_s + seconds`; images due in the warm-up count for nothing. Returns when all are answered.

    Raises:
        StartupError: the generator's process died.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_generate, to, pictures, _Plan(rate, seconds, warm_up_s, seed)).result()
        except BrokenProcessPool as error:
            raise StartupError("The load generator's process died.") from error


class _Plan(NamedTuple):
    rate: float
    seconds: float
    warm_up_s: float
    seed: int


def _generate(to: Target, pictures: Iterator[bytes], plan: _Plan) -> Run:
    return asyncio.run(_arrive(to, pictures, plan))


async def _arrive(to: Target, pictures: Iterator[bytes], plan: _Plan) -> Run:
    times = arrivals(plan.rate, plan.warm_up_s + plan.seconds, plan.seed)
    connections = _Connections(to)
    late: list[float] = []
    tasks: list[asyncio.Task[Outcome]] = []
    spent, began = cpu_seconds(), time.perf_counter()
    for due in times.tolist():
        image = next(pictures)
        wait = began + due - time.perf_counter()
        # Also when it is late: what is in flight must be read, or lateness would feed itself.
        await asyncio.sleep(max(0.0, wait))
        late.append((time.perf_counter() - began - due) * 1e3)
        tasks.append(asyncio.create_task(_one(connections, image, began, due, plan.warm_up_s)))
    cores = (cpu_seconds() - spent) / max(time.perf_counter() - began, 1e-9)
    outcomes = await asyncio.gather(*tasks)
    connections.close()
    late_ms = float(np.percentile(late, 99, method="inverted_cdf")) if late else 0.0
    return Run(plan.rate, plan.seconds, tuple(outcomes), late_ms, cores)


async def _one(connections: _Connections, image: bytes, began: float, due: float, warm_up_s: float) -> Outcome:
    try:
        status, headers, body = await connections.post(image)
        fault = target.fault(status, body, image)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        status, headers, fault = 0, {}, f"no answer: {type(error).__name__}"
    ms = (time.perf_counter() - began - due) * 1e3
    return judged(due - warm_up_s, ms, status, headers, fault)


def judged(due: float, ms: float, status: int, headers: dict[str, str], fault: str | None) -> Outcome:
    """The outcome of an answer whose fault is `fault`; header names are in small letters."""
    if fault is None:
        return Outcome(due, ms, "right")
    if status not in (429, 503):
        return Outcome(due, ms, "wrong", fault)
    if not headers.get("retry-after", "").isdigit():
        return Outcome(due, ms, "wrong", f"{fault}, without a Retry-After")
    return Outcome(due, ms, "refused", fault)


class _Connections:
    """Kept connections to one server: as many as requests in flight, the one used last is used first."""

    def __init__(self, to: Target) -> None:
        self._to = to
        self._address = address(to.url)
        self._head = head(to.url, to.headers)
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, image: bytes) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(self._to.timeout_s):
            reader, writer = await self._take()
            try:
                writer.write(self._head % len(image) + image)
                await writer.drain()
                raw = await reader.readuntil(b"\r\n\r\n")
                status, headers = parse_head(raw[:-4])
                body = await reader.readexactly(int(headers.get("content-length", "0")))
            except BaseException:
                writer.close()
                raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((time.perf_counter(), reader, writer))
        return status, headers, body

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < _IDLE_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address, limit=_LARGEST_HEAD)

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()
