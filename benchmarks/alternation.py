"""Measurements taken in turn, each beside a window of the same reference: a machine's drift then cancels out.

The machines that these figures come from change their speed by several per cent within minutes. So nothing is compared
that was not measured side by side: reference, A, reference, B, reference; in the next round in the reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass
class Series(Generic[T]):
    """One measurement over all rounds: what it returned, its figure, and the mean of the references on either side."""

    results: list[T] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Figure by neighbouring reference, one for each round."""
        return [value / reference for value, reference in zip(self.values, self.references, strict=True)]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios."""
        return median(self.ratios)

    def as_rows(self) -> dict[str, Any]:
        return {
            "median": round(self.median, 2),
            "ratio": round(self.ratio, 4),
            "ratio_min": round(min(self.ratios), 4),
            "ratio_max": round(max(self.ratios), 4),
            "ratios": [round(one, 4) for one in self.ratios],
            "values": [round(one, 2) for one in self.values],
            "references": [round(one, 2) for one in self.references],
        }


@dataclass
class Alternation(Generic[T]):
    """All series, and every reference window in the order it was taken."""

    series: dict[str, Series[T]]
    references: list[float]

    @property
    def noise(self) -> tuple[float, float]:
        """Smallest and largest ratio of a reference window to the one before it: the same code, minutes apart."""
        ratios = [later / earlier for earlier, later in pairwise(self.references)] or [1.0]
        return min(ratios), max(ratios)

    def as_rows(self) -> dict[str, Any]:
        return {
            "reference_median": round(median(self.references), 2),
            "references": [round(one, 2) for one in self.references],
            "noise_min": round(self.noise[0], 4),
            "noise_max": round(self.noise[1], 4),
            "series": {name: one.as_rows() for name, one in self.series.items()},
        }


def alternate(
    measurements: Mapping[str, Callable[[], T]],
    reference: Callable[[], float],
    value: Callable[[T], float],
    *,
    rounds: int = 3,
    announce: Callable[[str], None] = lambda _: None,
) -> Alternation[T]:
    """Run every measurement `rounds` times, in reverse order every second time, a reference window before and after.

    Args:
        measurements: by name.
        reference: takes one reference window and returns its figure (> 0), such as images/s.
        value: the figure of what a measurement returned, in the reference's unit.
        rounds: ≥ 1.
        announce: told what is about to be measured; called `steps` times.
    """
    series: dict[str, Series[T]] = {name: Series() for name in measurements}

    def window() -> float:
        announce("reference")
        return reference()

    references = [window()]
    for number in range(rounds):
        order = list(measurements)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            announce(name)
            found = measurements[name]()
            references.append(window())
            series[name].results.append(found)
            series[name].values.append(value(found))
            series[name].references.append(fmean(references[-2:]))
    return Alternation(series, references)


def steps(measurements: int, rounds: int) -> int:
    """How many windows `alternate` takes, references included."""
    return 2 * measurements * rounds + 1
