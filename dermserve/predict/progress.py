"""How far a run is: a bar on a terminal, else a plain line now and then; both on stderr."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_WINDOW_S: Final = 60.0
_BAR_EVERY_S: Final = 0.25
_LINE_EVERY_S: Final = 10.0
_SILENT_S: Final = 10.0


class Rate:
    """Images a second over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = deque([(clock(), 0)])

    def per_s(self, finished: int) -> float:
        """The rate, now that so many are finished since the beginning."""
        now = self._clock()
        while len(self._seen) > 1 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        if now - self._seen[-1][0] >= 0.2:
            self._seen.append((now, finished))
        return (finished - before) / max(now - since, 1e-9)


class Ticker:
    """Tells how far a long preparation is, every ten seconds; what is quick says nothing."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._next = clock() + _LINE_EVERY_S

    def __call__(self, count: int) -> None:
        if self._clock() >= self._next:
            self._next = self._clock() + _LINE_EVERY_S
            click.echo(f"{self._what}: {count:,} images so far.", err=True)


class Meter:
    """What a run counts: `total` inputs, of which `done` were done before it and `finished` by it.

    `pace` says how many are sent at a time, `silent_s` since when the server has answered nothing.
    """

    def __init__(self, total: int | None, done: int, pace: Callable[[], int], silent_s: Callable[[], float]) -> None:
        self.total, self.done, self.finished, self.refused = total, done, 0, 0
        self._pace = pace
        self._silent_s = silent_s
        self._rate = Rate()

    def rate(self) -> str:
        """How fast it is, or why not."""
        if self._silent_s() >= _SILENT_S:
            return f"no answer for {duration(self._silent_s())}"
        return f"{self._rate.per_s(self.finished):.1f} images/s"

    def line(self) -> str:
        """One line for a log."""
        done, per_s = self.done + self.finished, self._rate.per_s(self.finished)
        parts = [f"{done:,} images"]
        if self.total is not None:
            parts = [f"{done:,} of {self.total:,} images ({100 * done // max(1, self.total)} %)"]
        parts.append(self.rate())
        if self.total is not None and per_s > 0:
            parts.append(f"about {duration((self.total - done) / per_s)} left")
        parts += [f"{self._pace()} at a time"] + ([f"{self.refused:,} refused"] if self.refused else [])
        return ", ".join(parts)

    async def show(self) -> None:
        """Tell until it is cancelled."""
        console = Console(stderr=True)
        if not console.is_terminal:
            while True:
                await asyncio.sleep(_LINE_EVERY_S)
                click.echo(self.line(), err=True)
        rate = TextColumn("{task.fields[rate]}, {task.fields[pace]} at a time")
        columns = (TextColumn("Scoring"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=self.total, rate="", pace=0)
            try:
                while True:
                    bar.update(task, completed=self.done + self.finished, rate=self.rate(), pace=self._pace())
                    await asyncio.sleep(_BAR_EVERY_S)
            finally:
                bar.update(task, completed=self.done + self.finished, rate=self.rate(), pace=self._pace())


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
