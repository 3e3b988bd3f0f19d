"""The comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots


def draw(path: Path, title: str, rows: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """Bars of throughput as a share of the in-process limit (whiskers: rounds), p50 and p99, and memory."""
    names = [f"{name}\n{row['inside']}" for name, row in rows.items()]
    colours = ["C0" if name.startswith("dermserve") else "0.65" for name in rows]
    places = range(len(rows))
    with plots.figure(path, 3, title, machine) as (share, latency, memory):
        middle = [row["share"] for row in rows.values()]
        spread = [
            [row["share"] - row["least"] for row in rows.values()],
            [row["most"] - row["share"] for row in rows.values()],
        ]
        share.barh(places, middle, xerr=spread, color=colours, error_kw={"capsize": 3, "ecolor": "0.3"})
        share.axvline(1.0, color="0.5")
        share.set(xlabel="throughput, share of the in-process limit")
        for place, row in zip(places, rows.values(), strict=True):
            share.annotate(f"{row['images/s']:.1f}/s", (0, place), (3, 0), textcoords="offset points", va="center")
            latency.plot([row.get("p50 ms", 0), row.get("p99 ms", 0)], [place] * 2, color=colours[place], marker="o")
        latency.set(xlabel="latency, p50 to p99 (ms)", xlim=(0, None))
        memory.barh(places, [row["PSS MiB"] / 1024 for row in rows.values()], color=colours)
        memory.set(xlabel="memory of all processes, PSS (GiB)")
        for axis in (share, latency, memory):
            axis.set_yticks(places, names if axis is share else [""] * len(names), fontsize="x-small")
            axis.set_ylim(len(names) - 0.5, -0.5)
