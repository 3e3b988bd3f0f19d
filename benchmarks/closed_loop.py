"""Senders that each wait for their answer before they send the next image, in a process of their own.

A generator in the process that also measures or serves would share its interpreter lock. On a machine that also runs
the server it still takes its part of the cores: `Window.client_cores` says how much, beside every figure.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks import report
from dermserve.errors import StartupError

Send = Callable[[Any], None]
_AFTER_A_FAULT_S = 0.05  # a server that is gone refuses thousands a second
_FAULTS_TOLD = 20
_FAULT_LENGTH = 200


@dataclass(frozen=True)
class Window:
    """What one measurement saw.

    Args:
        answered: right answers that arrived within the window, in images.
        failed: calls that raised at any time, warm-up included.
        seconds: length of the window.
        ms: latency of every right answer to a call made within the window, also of those that came after its end, so
            that a server which stalls cannot hide it.
        faults: what went wrong, and how often.
        client_cores: user and system time of the generator's process per second of the window.
        began: `time.perf_counter()` at its start, which on Linux all processes of a machine share.
    """

    answered: int
    failed: int
    seconds: float
    ms: tuple[float, ...]
    faults: dict[str, int] = field(default_factory=dict)
    client_cores: float = 0.0
    began: float = 0.0

    @property
    def ended(self) -> float:
        return self.began + self.seconds

    @property
    def per_second(self) -> float:
        """Images answered rightly per second."""
        return self.answered / self.seconds

    def percentiles(self) -> dict[str, float]:
        """p50, p95, p99 in ms by nearest rank; empty where nothing was answered."""
        return report.percentiles(self.ms) if self.ms else {}

    def goodput(self, bound_ms: float) -> float:
        """Images per second whose answer came within `bound_ms`."""
        within = sum(one <= bound_ms for one in self.ms)
        return self.per_second * within / len(self.ms) if self.ms else 0.0

    def as_rows(self) -> dict[str, Any]:
        return {
            "per_second": round(self.per_second, 2),
            **{f"{name}_ms": round(value, 1) for name, value in self.percentiles().items()},
            "answered": self.answered,
            "failed": self.failed,
            "client_cores": round(self.client_cores, 3),
            **({"faults": self.faults} if self.faults else {}),
        }


def drive(
    connect: Callable[[], Send],
    pictures: Iterator[Any],
    *,
    senders: int,
    seconds: float,
    warm_up_s: float = 2.0,
    images_per_call: int = 1,
    pause_s: float = 0.0,
) -> Window:
    """Send from `senders` threads of a spawned process for `seconds`, after a warm-up that counts for nothing.

    Args:
        connect: called once in each sender's thread; returns a function that sends what `pictures` yields and raises
            on any fault, a wrong answer included. It travels to the process: a function of a module, a
            `functools.partial` of one, or an instance whose class stands in a module.
        pictures: shared by the senders; it travels, too (`images.endless` does).
        senders: threads, each with what its own `connect()` returned.
        seconds: length of the window.
        warm_up_s: how long they send before it begins.
        images_per_call: how many images one item of `pictures` holds.
        pause_s: mean of an exponential pause between an answer and the next call, as a person makes it.

    Raises:
        StartupError: a sender could not connect, or the process died.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            plan = _Plan(senders, seconds, warm_up_s, images_per_call, pause_s)
            return pool.submit(_generate, connect, pictures, plan).result()
        except BrokenProcessPool as error:
            raise StartupError("The load generator's process died.") from error


class _Call(NamedTuple):
    began: float
    ended: float
    fault: str | None


def pooled(windows: Sequence[Window]) -> Window:
    """Several windows as one: what was counted is summed, latencies are put together, client cores averaged."""
    faults: Counter[str] = Counter()
    for window in windows:
        faults.update(window.faults)
    return Window(
        answered=sum(window.answered for window in windows),
        failed=sum(window.failed for window in windows),
        seconds=sum(window.seconds for window in windows),
        ms=tuple(ms for window in windows for ms in window.ms),
        faults=dict(faults),
        client_cores=fmean(window.client_cores for window in windows),
        began=windows[0].began,
    )


class _Plan(NamedTuple):
    senders: int
    seconds: float
    warm_up_s: float
    images_per_call: int
    pause_s: float


def _generate(connect: Callable[[], Send], pictures: Iterator[Any], plan: _Plan) -> Window:
    clock = _Clock(plan.senders, plan.seconds, plan.warm_up_s)
    with ThreadPoolExecutor(plan.senders) as pool:
        running = [pool.submit(_keep_sending, connect, pictures, clock, plan.pause_s) for _ in range(plan.senders)]
        try:
            cores = clock.watch()
        except threading.BrokenBarrierError:
            cores = 0.0
        errors = [error for one in running if (error := one.exception()) is not None]
    told = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if told:
        raise StartupError(f"A sender could not connect: {told[0]}") from told[0]
    return _window([call for one in running for call in one.result()], clock, cores, plan.images_per_call)


class _Clock:
    """Starts all senders together once every one is connected; the window lies between `start` and `end`."""

    def __init__(self, senders: int, seconds: float, warm_up_s: float) -> None:
        self._gate = threading.Barrier(senders + 1, action=self._set)
        self.seconds = seconds
        self._warm_up_s = warm_up_s
        self.start = self.end = 0.0

    def _set(self) -> None:
        self.start = time.perf_counter() + self._warm_up_s
        self.end = self.start + self.seconds

    def join(self) -> None:
        self._gate.wait()

    def abort(self) -> None:
        self._gate.abort()

    def watch(self) -> float:
        """Sleep through the window; returns the cores that this process kept busy meanwhile."""
        self.join()
        time.sleep(max(0.0, self.start - time.perf_counter()))
        before, began = cpu_seconds(), time.perf_counter()
        time.sleep(max(0.0, self.end - time.perf_counter()))
        return (cpu_seconds() - before) / max(time.perf_counter() - began, 1e-9)


def cpu_seconds() -> float:
    """User and system time of this process so far, in seconds."""
    spent = os.times()
    return spent.user + spent.system


def _keep_sending(connect: Callable[[], Send], pictures: Iterator[Any], clock: _Clock, pause_s: float) -> list[_Call]:
    try:
        send = connect()
    except BaseException:
        clock.abort()
        raise
    clock.join()
    calls = []
    while (began := time.perf_counter()) < clock.end:
        fault = None
        try:
            send(next(pictures))
        except Exception as error:
            fault = (str(error) or type(error).__name__)[:_FAULT_LENGTH]
        calls.append(_Call(began, time.perf_counter(), fault))
        if fault is not None:
            time.sleep(_AFTER_A_FAULT_S)
        elif pause_s:
            time.sleep(random.expovariate(1 / pause_s))
    return calls


def _window(calls: list[_Call], clock: _Clock, cores: float, images_per_call: int) -> Window:
    right = [call for call in calls if call.fault is None]
    faults = Counter(call.fault for call in calls if call.fault is not None)
    return Window(
        answered=images_per_call * sum(clock.start <= call.ended <= clock.end for call in right),
        failed=sum(faults.values()),
        seconds=clock.seconds,
        ms=tuple((call.ended - call.began) * 1e3 for call in right if call.began >= clock.start),
        faults=dict(faults.most_common(_FAULTS_TOLD)),
        client_cores=cores,
        began=clock.start,
    )
