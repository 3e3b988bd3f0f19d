"""The plot of a lesion's melanoma probability over time: where its marks and lines stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Final

from frontend.lesions import Score

POINTS: Final = 200
"""Most marks that are drawn: the latest; more would lie upon each other."""
_LABELLED: Final = 25.0
"""A threshold's line gets its label where it is this wide, in percent of the plot."""


@dataclass(frozen=True)
class Mark:
    """One result. `x` is in percent of the width, `y` of the height, from the top."""

    x: float
    y: float
    score: Score


@dataclass(frozen=True)
class Line:
    """The threshold from `x1` to `x2` at height `y`, and whether there is room for its label."""

    x1: float
    x2: float
    y: float
    operating_point: str
    threshold: float
    labelled: bool


@dataclass(frozen=True)
class Trend:
    """`pieces` are joined by a line each: scores of one model at one precision. `changes` are the places between them.

    `total` counts the assessed results, of which only the latest `POINTS` have marks.
    """

    marks: Sequence[Mark]
    pieces: Sequence[Sequence[Mark]]
    changes: Sequence[float]
    thresholds: Sequence[Line]
    total: int


def trend(scores: Sequence[Score], total: int) -> Trend:
    """The plot of a lesion's latest scores, oldest first, out of `total`."""
    marks = _marks(scores)
    pieces = _grouped(marks, lambda mark: mark.score.model)
    decided = _grouped(marks, lambda mark: (mark.score.operating_point, mark.score.threshold))
    edges = [0.0, *_between(decided), 100.0]
    lines = [
        Line(x1, x2, 100 * (1 - one.threshold), one.operating_point, one.threshold, labelled=x2 - x1 >= _LABELLED)
        for (x1, x2), one in zip(pairwise(edges), (piece[0].score for piece in decided), strict=False)
    ]
    return Trend(marks, pieces, _between(pieces), lines, total)


def _marks(scores: Sequence[Score]) -> list[Mark]:
    if not scores:
        return []
    first = scores[0].at
    span = (scores[-1].at - first).total_seconds()
    return [
        Mark(100 * (one.at - first).total_seconds() / span if span else 50.0, 100 * (1 - one.melanoma), one)
        for one in scores
    ]


def _grouped(marks: Sequence[Mark], key: Callable[[Mark], Any]) -> list[list[Mark]]:
    return [list(group) for _, group in groupby(marks, key)]


def _between(pieces: Sequence[Sequence[Mark]]) -> list[float]:
    """The middle between the end of each piece and the beginning of the next."""
    return [(before[-1].x + after[0].x) / 2 for before, after in pairwise(pieces)]
