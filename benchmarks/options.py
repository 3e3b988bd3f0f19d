"""Options that the benchmarks share, gathered into one `Plan`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import report

_QUICK_S = 0.5


@dataclass(frozen=True)
class Plan:
    """On which images, how often in turn, and where results go. `quick` says that figures are worth nothing."""

    folder: Path | None
    files: list[bytes]
    source: str
    rounds: int
    quick: bool
    out: Path

    def window(self, seconds: float, most: float = float("inf")) -> float:
        """Seconds of a window, at most `most`."""
        return _QUICK_S if self.quick else min(seconds, most)

    def as_rows(self) -> dict[str, Any]:
        return {"images": self.source, "rounds": self.rounds, "quick": self.quick}


def seconds(default: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--seconds`, the length of one window."""
    return click.option(
        "--seconds", default=default, show_default=True, type=click.FloatRange(0.1, 600), help="Length of one window."
    )


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--images`, `--rounds`, `--quick` and `--out`, handed over as `plan`."""

    @click.option(
        "--images",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of JPEG files to send.  [default: ../shared/data/load where present, else drawn ones]",
    )
    @click.option(
        "--rounds", default=3, show_default=True, type=click.IntRange(1, 50), help="Windows of each, in turn."
    )
    @click.option("--quick", is_flag=True, help="Half a second and one round: does it run? Bounds are not judged.")
    @click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=report.RESULTS,
        help="Folder for the results.  [default: benchmarks/results]",
    )
    @functools.wraps(command)
    def with_plan(*, images: Path | None, rounds: int, quick: bool, out: Path, **rest: Any) -> Any:
        from benchmarks.images import pictures

        files, source = pictures(images)
        return command(plan=Plan(images, files, source, 1 if quick else rounds, quick, out), **rest)

    return with_plan
