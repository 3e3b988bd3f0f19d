"""Encoded images in, probabilities out: any way into a server, at any number of senders, beside the limit.

Every window stands between two windows of the limit (`benchmarks.limit`), and the order turns every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks.alternation import Alternation, Series, alternate
from benchmarks.closed_loop import Send, Window, drive, pooled


@dataclass(frozen=True)
class Load:
    """A number of senders on one way into a server; `images_per_call` is what one item of `pictures` holds."""

    way: str
    senders: int
    connect: Callable[[], Send]
    pictures: Iterator[Any]
    images_per_call: int = 1

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.way}, {self.senders} sender{'s' if self.senders > 1 else ''}"


def measure(
    loads: Sequence[Load],
    reference: Callable[[], float],
    *,
    seconds: float,
    rounds: int,
    warm_up_s: float = 1.0,
    announce: Callable[[str], None] = lambda _: None,
) -> Alternation[Window]:
    """Take every load `rounds` times in turn, a reference window before and after each; series bear the loads' names."""
    windows = {
        load.name: partial(
            drive, load.connect, load.pictures, senders=load.senders, seconds=seconds, warm_up_s=warm_up_s,
            images_per_call=load.images_per_call,
        )
        for load in loads
    }  # fmt: skip
    return alternate(windows, reference, lambda window: window.per_second, rounds=rounds, announce=announce)


def rows(found: Alternation[Window], goodput_ms: float) -> dict[str, dict[str, Any]]:
    """A table's lines by name: medians over the rounds, percentiles over all answers of all rounds."""
    return {name: _row(series, goodput_ms) for name, series in found.series.items()}


def _row(series: Series[Window], goodput_ms: float) -> dict[str, Any]:
    together = pooled(series.results)
    return {
        "images/s": round(series.median, 2),
        "share": round(series.ratio, 3),
        "share_min": round(min(series.ratios), 3),
        "share_max": round(max(series.ratios), 3),
        **{f"{name}_ms": round(value, 1) for name, value in together.percentiles().items()},
        "goodput": round(median(window.goodput(goodput_ms) for window in series.results), 2),
        "n": len(together.ms),
        "failed": together.failed,
        "client_cores": round(together.client_cores, 3),
    }


def failed(series: Mapping[str, Series[Window]]) -> int:
    """Calls that got no right answer, over everything that was measured."""
    return sum(window.failed for one in series.values() for window in one.results)


def faults(series: Mapping[str, Series[Window]]) -> dict[str, dict[str, int]]:
    """What went wrong, by load; empty where nothing did."""
    found = {name: pooled(one.results).faults for name, one in series.items()}
    return {name: told for name, told in found.items() if told}
