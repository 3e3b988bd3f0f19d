"""The highest rate of arrivals at which the server keeps its latency, and what it does far beyond it.

After MLPerf's Server scenario: Poisson arrivals, the p99 of latency within a bound, the metric is the rate. MLPerf asks
for 600 s and 270,336 queries to be 99 % sure of a p99; runs here are shorter and say their n. Rates are shares of the
in-process limit, of which a window is taken before every run, because the machine's own speed drifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import fmean, median
from typing import Protocol

from benchmarks.alternation import Alternation, alternate
from benchmarks.closed_loop import Window
from benchmarks.open_loop import Run

_STEP_BACK = 0.95
_CONFIRMATIONS = 5
_LOWEST, _HIGHEST = 0.1, 1.1  # shares of the limit to look between


class Arrive(Protocol):
    """One open-loop run: `open_loop.drive` on some server."""

    def __call__(self, *, rate: float, seconds: float, seed: int) -> Run: ...


@dataclass
class Capacity:
    """`share` of the limit whose p99 held in the median of `confirmed`; `trials` are the runs of the search."""

    share: float
    trials: list[Run] = field(default_factory=list)
    confirmed: Alternation[Run] | None = None

    @property
    def runs(self) -> list[Run]:
        """The runs at the capacity, one for each round; none where no rate held."""
        return [] if self.confirmed is None else self.confirmed.series["open loop"].results

    @property
    def rate(self) -> float:
        """Images/s that arrived at the capacity, in the median of the rounds."""
        return median(run.rate for run in self.runs) if self.runs else 0.0


def search(
    arrive: Arrive,
    reference: Callable[[], float],
    *,
    bound_ms: float,
    trial_s: float,
    confirm_s: float,
    rounds: int,
    seed: int = 0,
    resolution: float = 0.03,
    announce: Callable[[str], None] = lambda _: None,
) -> Capacity:
    """Bisect for the highest share whose p99 is within `bound_ms`, then confirm it in turn with the limit.

    A share that is not confirmed is lowered by 5 % and tried again, five times at most.

    Args:
        arrive: one open-loop run.
        reference: takes one window of the in-process limit, images/s.
        bound_ms: of the p99; an image that was refused or got a wrong answer counts as later than any bound.
        trial_s: length of a run of the search.
        confirm_s: length of a run of the confirmation.
        rounds: runs of the confirmation.
        seed: of the first run; every run has its own.
        resolution: of the search, as a share of the limit.
        announce: told what is about to happen.
    """
    found = Capacity(0.0)
    beside = _Beside(arrive, reference, seed)
    low, high = _LOWEST, _HIGHEST
    while high - low > resolution:
        share = (low + high) / 2
        announce(f"search: {share:.2f} of the limit")
        beside.window()
        run = beside.run(share, trial_s)
        found.trials.append(run)
        low, high = (share, high) if run.percentile(99) <= bound_ms else (low, share)
    share = low
    for _ in range(_CONFIRMATIONS):
        confirmed = alternate(
            {"open loop": partial(beside.run, share, confirm_s)}, beside.window, lambda run: run.rate, rounds=rounds,
            announce=partial(_tell, announce, share),
        )  # fmt: skip
        if median(run.percentile(99) for run in confirmed.series["open loop"].results) <= bound_ms:
            found.share, found.confirmed = share, confirmed
            break
        found.trials += confirmed.series["open loop"].results
        share *= _STEP_BACK
    return found


def _tell(announce: Callable[[str], None], share: float, what: str) -> None:
    announce(f"confirm {share:.2f}: {what}")


class _Beside:
    """Runs at shares of the limit's latest window."""

    def __init__(self, arrive: Arrive, reference: Callable[[], float], seed: int) -> None:
        self._arrive = arrive
        self._reference = reference
        self._seeds = count(seed)
        self._latest = 0.0

    def window(self) -> float:
        self._latest = self._reference()
        return self._latest

    def run(self, share: float, seconds: float) -> Run:
        return self._arrive(rate=share * self._latest, seconds=seconds, seed=next(self._seeds))


@dataclass(frozen=True)
class Overload:
    """A run far beyond capacity, between two closed-loop windows at saturation; the mean of these is the peak."""

    run: Run
    before: Window
    after: Window

    @property
    def peak(self) -> float:
        """Images/s that are answered rightly when as many senders as saturate it wait for their answers."""
        return fmean((self.before.per_second, self.after.per_second))

    def share(self, within_ms: float) -> float:
        """Goodput under overload by the peak."""
        return self.run.goodput(within_ms) / self.peak if self.peak else 0.0


def overload(
    arrive: Arrive, saturate: Callable[[], Window], *, capacity: float, factor: float, seconds: float, seed: int
) -> Overload:
    """Let `factor` times as much arrive as the server can answer, with a window of `saturate` before and after.

    What it can answer is the larger of its open-loop `capacity` and the window before: a capacity that was found too
    low must not make an overload into none.
    """
    before = saturate()
    run = arrive(rate=factor * max(capacity, before.per_second, 1.0), seconds=seconds, seed=seed)
    return Overload(run, before, saturate())
