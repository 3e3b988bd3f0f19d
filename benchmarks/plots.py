"""Plots of results: what a table says, at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.alternation import Alternation
from benchmarks.capacity import Overload
from benchmarks.closed_loop import Window, pooled
from benchmarks.open_loop import Run
from benchmarks.serve import Load
from benchmarks.stack import MemorySample

_WHISKER = {"capsize": 3, "ecolor": "0.3"}


@contextmanager
def figure(path: Path, columns: int, title: str, machine: Mapping[str, Any]) -> Iterator[Any]:
    """Axes in a row, saved as `path` at the end; the title names the machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, axes = plt.subplots(1, columns, figsize=(5.5 * columns, 4.2), layout="constrained", squeeze=False)
    drawn.suptitle(f"{title} · {machine['cpu']}, {machine['threads']} threads", fontsize="medium")
    yield axes[0]
    drawn.savefig(path, dpi=120)
    plt.close(drawn)


def limit(path: Path, rows: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any]) -> None:
    """Median images/s of everything measured, with the smallest and largest round."""
    with figure(path, 1, "In-process limit", machine) as (axis,):
        networks = {name: row for name, row in rows.items() if not name.startswith("decode alone")}
        _bars(axis, {name: (row["median"], row["min"], row["max"]) for name, row in networks.items()})
        axis.set(xlabel="images/s")


def over_concurrency(
    path: Path,
    loads: Sequence[Load],
    found: Alternation[Window],
    bounds: Mapping[str, float],
    machine: Mapping[str, Any],
) -> None:
    """Throughput, latency and share of the limit; `bounds`: share that the load of a name has to reach."""
    ways = list(dict.fromkeys(load.way for load in loads))
    with figure(path, 3, "Served", machine) as (throughput, latency, share):
        for way, colour in zip(ways, ("C0", "C1", "C2"), strict=False):
            mine = [load for load in loads if load.way == way]
            senders = [load.senders for load in mine]
            series = [found.series[load.name] for load in mine]
            spread = [
                [one.median - min(one.values) for one in series],
                [max(one.values) - one.median for one in series],
            ]
            throughput.errorbar(
                senders, [one.median for one in series], spread, marker="o", color=colour, label=way, **_WHISKER
            )
            told = [pooled(one.results).percentiles() for one in series]
            for name, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
                values = [one.get(name, np.nan) for one in told]
                latency.plot(senders, values, style, marker=".", color=colour, label=f"{way} {name}")
        throughput.axhspan(min(found.references), max(found.references), color="0.9")
        throughput.axhline(median(found.references), color="0.5", label="in-process limit")
        throughput.set(xlabel="senders", ylabel="images/s", xscale="log", ylim=(0, None))
        answered = any(one.ms for load in loads for one in found.series[load.name].results)
        scale = "log" if answered else "linear"
        latency.set(xlabel="senders", ylabel="latency (ms)", xscale="log", yscale=scale)
        for axis in (throughput, latency):
            # A logarithmic axis would name its powers of ten.
            axis.set_xticks(sorted({load.senders for load in loads}), sorted({load.senders for load in loads}))
            axis.minorticks_off()
            axis.legend(fontsize="x-small")
        _shares(share, found, bounds)


def shares(path: Path, found: Alternation[Window], bounds: Mapping[str, float], machine: Mapping[str, Any]) -> None:
    """Share of the decode limit, and latencies, of everything measured."""
    with figure(path, 2, "Transport: the classifier answers constants", machine) as (share, latency):
        _shares(share, found, bounds)
        for name, series in found.series.items():
            _cdf(latency, pooled(series.results).ms, name)
        _finish_cdf(latency, "latency of a request (ms)")


def lane(path: Path, idle: Window, busy: Window, machine: Mapping[str, Any]) -> None:
    """Latencies of one person on an idle server and beside a bulk stream."""
    with figure(path, 1, "One person's uploads", machine) as (axis,):
        _cdf(axis, idle.ms, "idle server")
        _cdf(axis, busy.ms, "beside a bulk stream")
        axis.axhline(0.95, color="0.7", linewidth=0.8)
        _finish_cdf(axis, "latency (ms)")


def capacity(
    path: Path, trials: Sequence[Run], runs: Sequence[Run], bound_ms: float, machine: Mapping[str, Any]
) -> None:
    """p99 of every run over its rate, and the latencies of the runs at the capacity."""
    with figure(path, 2, "Open loop, Poisson arrivals", machine) as (search, latency):
        for some, colour, name in ((trials, "C0", "search"), (runs, "C2", "capacity")):
            points = [(run.rate, run.percentile(99)) for run in some]
            for finite, marker in ((True, "o"), (False, "x")):
                drawn = [(rate, p99) for rate, p99 in points if np.isfinite(p99) == finite]
                search.plot(
                    [rate for rate, _ in drawn], [p99 if finite else 10 * bound_ms for _, p99 in drawn],
                    marker, color=colour, label=name if finite else f"{name}: over 1 % not answered" if drawn else None,
                )  # fmt: skip
        search.axhline(bound_ms, color="C3", label="bound")
        search.set(xlabel="arrivals per second", ylabel="p99 from due to answered (ms)", yscale="log")
        search.legend(fontsize="x-small")
        for number, run in enumerate(runs, 1):
            _cdf(latency, [one.ms for one in run.counted if one.kind == "right"], f"round {number}, {run.rate:.1f}/s")
        latency.axvline(bound_ms, color="C3")
        _finish_cdf(latency, "latency from due to answered (ms)")


def overload(
    path: Path, found: Overload, within_ms: float, memory: Sequence[MemorySample], machine: Mapping[str, Any]
) -> None:
    """Answers per second over time beside the peak, and the memory of all processes."""
    run = found.run
    with figure(path, 2, f"Overload: {run.rate:.0f} arrivals per second", machine) as (answers, held):
        edges = np.arange(0, int(run.seconds) + 1)
        told = {
            "right, in time": [one for one in run.outcomes if one.kind == "right" and one.ms <= within_ms],
            "right, late": [one for one in run.outcomes if one.kind == "right" and one.ms > within_ms],
            "refused with Retry-After": [one for one in run.outcomes if one.kind == "refused"],
            "wrong": [one for one in run.outcomes if one.kind == "wrong"],
        }
        for (name, some), colour in zip(told.items(), ("C2", "C1", "0.6", "C3"), strict=True):
            if some:
                counts, _ = np.histogram([one.due + one.ms / 1e3 for one in some], edges)
                answers.plot(edges[:-1] + 0.5, counts, color=colour, label=name)
        answers.axhline(found.peak, color="C0", linestyle="--", label="peak (closed loop)")
        answers.set(xlabel="time (s)", ylabel="answers per second", ylim=(0, None))
        answers.legend(fontsize="x-small")
        at = [sample.at for sample in memory]
        held.plot(at, [sample.pss / 2**30 for sample in memory], label="PSS")
        held.plot(at, [sample.rss / 2**30 for sample in memory], label="RSS")
        held.set(xlabel="time (s), windows at saturation before and after", ylabel="GiB, all processes", ylim=(0, None))
        held.legend(fontsize="x-small")


def parts(path: Path, ms: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any]) -> None:
    """One stacked bar for each way into the server: milliseconds by part."""
    with figure(path, 1, "Processor time of one image", machine) as (axis,):
        for position, way in enumerate(ms):
            left = 0.0
            for colour, (name, value) in enumerate(ms[way].items()):
                label = name if position == 0 else f"_{name}"
                axis.barh(position, value, left=left, color=f"C{colour}", label=label)
                left += value
        axis.set_yticks(range(len(ms)), ms, fontsize="small")
        axis.invert_yaxis()
        axis.set(xlabel="ms")
        axis.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _shares(axis: Any, found: Alternation[Window], bounds: Mapping[str, float]) -> None:
    _bars(axis, {name: (one.ratio, min(one.ratios), max(one.ratios)) for name, one in found.series.items()})
    for position, name in enumerate(found.series):
        if name in bounds:
            axis.plot([bounds[name]] * 2, [position - 0.45, position + 0.45], color="C3", linewidth=2)
    low, high = found.noise
    axis.axvspan(low, high, color="0.93", zorder=0)
    axis.axvline(1.0, color="0.5")
    axis.set(xlabel="share of the limit beside it\nwhiskers: rounds; grey: same code; red: bound")


def _bars(axis: Any, values: Mapping[str, tuple[float, float, float]]) -> None:
    """Horizontal bars of (median, smallest, largest), the first on top."""
    middle = np.array([one[0] for one in values.values()])
    spread = np.abs(np.array([one[1:] for one in values.values()]).T - middle)
    axis.barh(range(len(values)), middle, xerr=spread, height=0.7, error_kw=_WHISKER)
    axis.set_yticks(range(len(values)), values, fontsize="x-small")
    axis.invert_yaxis()


def _cdf(axis: Any, values: Sequence[float], name: str) -> None:
    if values:
        ordered = np.sort(values)
        axis.step(
            ordered, np.arange(1, ordered.size + 1) / ordered.size, where="post", label=f"{name} (n={ordered.size})"
        )


def _finish_cdf(axis: Any, label: str) -> None:
    axis.set(xlabel=label, ylabel="share of answers within", xscale="log", ylim=(0, 1))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="x-small")
