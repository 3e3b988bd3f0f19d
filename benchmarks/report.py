"""What a measurement says: latencies summed up, the machine it ran on, and the files it leaves."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dermserve import __version__

RESULTS = Path(__file__).resolve().parent / "results"

_FILE_WIDTH = 160

Cell = str | float | int | bool | None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 by nearest rank: each is a value that was really measured, at least that share is not above it.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to sum up")
    found = np.percentile(np.asarray(values, np.float64), (50, 95, 99), method="inverted_cdf")
    return dict(zip(("p50", "p95", "p99"), map(float, found), strict=True))


def machine() -> dict[str, Any]:
    """The machine and the software that the figures belong to."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "dermserve": __version__,
        "load_before": round(psutil.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(path: Path, figures: Mapping[str, Any], measured_on: Mapping[str, Any]) -> Path:
    """Write figures with their machine and date as JSON, readable in a diff; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": measured_on, **figures}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def show(title: str, rows: Mapping[str, Cell]) -> None:
    """Print name and value in two columns."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, _readable(value))
    _console().print(table)


def show_all(title: str, rows: Mapping[str, Mapping[str, Cell]]) -> None:
    """Print a table with one line for each name; the columns are the keys of all rows."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(_readable(row.get(column)) for column in columns))
    _console().print(table)


@dataclass(frozen=True)
class Bound:
    """A figure and where it has to lie: `at_least` the bound, or else at most."""

    what: str
    found: float
    bound: float
    at_least: bool = True

    @property
    def held(self) -> bool:
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def as_rows(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "found": round(self.found, 4),
            "bound": self.bound,
            "at": "least" if self.at_least else "most",
            "held": self.held,
        }


def conclude(
    name: str, figures: Mapping[str, Any], bounds: Sequence[Bound], measured_on: Mapping[str, Any], out: Path
) -> bool:
    """Print each bound as held or not held and write `out/name.json`; returns whether all are held."""
    table = Table(title="Bounds", title_justify="left")
    for column in ("", "found", "bound", ""):
        table.add_column(column, justify="right" if column in ("found", "bound") else "left")
    for one in bounds:
        word = "at least" if one.at_least else "at most"
        table.add_row(one.what, _readable(one.found), f"{word} {one.bound:g}", "held" if one.held else "NOT HELD")
    if bounds:
        _console().print(table)
    held = all(one.held for one in bounds)
    judged = {"held": held, "bounds": [one.as_rows() for one in bounds]}
    _console().print(f"written: {write(out / f'{name}.json', {**judged, **figures}, measured_on)}", soft_wrap=True)
    return held


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr for `total` steps; the function yielded is told what is about to begin."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)

        def announce(what: str) -> None:
            bar.update(task, description=what, advance=1)

        yield announce


def _console() -> Console:
    """The terminal; a file or a pipe gets lines long enough for every column."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _readable(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.3g}" if abs(value) < 1 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
        case _:
            return str(value)
