"""What becomes of one input: scores, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dermserve.errors import DermserveError


class Item(NamedTuple):
    """One input. `position` orders the tables; `name` is what they call it, as UTF-8."""

    position: int
    name: str
    path: Path


class Stamp(NamedTuple):
    """Which content of a file an outcome belongs to. `mtime_ns` is in nanoseconds, `sha256` in hex."""

    size: int
    mtime_ns: int
    sha256: str


class Scores(NamedTuple):
    """What a server computed.

    Args:
        probabilities: the CSV's four columns, 0…1.
        ood: distance to the training images; None where the door does not tell it.
        abstained: the server's own verdict; None where the threshold of this installation's card decides.
        document: all that is known, as JSON, for JSON lines; None where it was not asked for.
    """

    probabilities: Sequence[float]
    ood: float | None = None
    abstained: bool | None = None
    document: str | None = None


class Refusal(NamedTuple):
    """Why there are no scores. `passing`: the next run with --resume tries again."""

    code: str
    detail: str
    passing: bool = False

    @classmethod
    def of(cls, error: DermserveError, *, passing: bool = False) -> Refusal:
        return cls(error.code, error.detail, passing)


Outcome = Scores | Refusal


class Done(NamedTuple):
    """An outcome on its way into the journal; `stamp` is None where the file gave no bytes."""

    position: int
    outcome: Outcome
    stamp: Stamp | None


def as_text(path: Path | str) -> str:
    """A path may hold any byte but zero; what is no UTF-8 is written as \\xff, so that every name can be written."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
