"""Servers one at a time, in turn with the in-process limit: started, warmed up, measured, ended, and compared."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.alternation import Alternation, Series
from benchmarks.closed_loop import Send, Window, drive, pooled
from benchmarks.peers.catalogue import Peer, code_lines
from benchmarks.peers.process import CpuWatch, serving
from benchmarks.peers.wire import Expected, Http, Numbered, TritonGrpc
from benchmarks.stack import memory, starting


class Live(NamedTuple):
    """A server that answers: what connects to it, its processes, and seconds from its start to its first right answer."""

    connect: Callable[[], Send]
    processes: Callable[[], list[psutil.Process]]
    start_s: float


@dataclass(frozen=True)
class Job:
    """The weights to serve, the images to send, their right answers, and the precision these are of."""

    repository: Path
    files: Sequence[bytes]
    expected: Expected
    precision: str = "FP32"


@dataclass(frozen=True)
class Entrant:
    """A server to measure: what it runs inside, in words, and the lines that set it up."""

    name: str
    inside: str
    lines: int
    open: Callable[[], AbstractContextManager[Live]]


@dataclass(frozen=True)
class Visit:
    """One server's turn. `pss`: bytes of all its processes, at the window's end; `cores`: what it kept busy of them."""

    window: Window
    start_s: float
    pss: int
    processes: int
    cores: float


def peer(entry: Peer, choice: str, inside: str, job: Job, name: str | None = None) -> Entrant:
    """One of the other servers, with `choice` of `inside.py` in it; `name` where its own is not enough."""

    @contextmanager
    def opened() -> Iterator[Live]:
        began = time.perf_counter()
        with serving(entry, choice, job.repository) as server:
            connect = Http(server.port, entry.path, entry.encoding, job.expected)
            server.until_right(connect, (0, job.files[0]))
            yield Live(connect, server.processes, time.perf_counter() - began)

    return Entrant(name or entry.name, inside, entry.lines, opened)


def ours(way: str, job: Job, name: str) -> Entrant:
    """The whole of `dermserve serve`, database and pages included. `way`: `grpc` (Triton) or `http` (with history)."""

    @contextmanager
    def opened() -> Iterator[Live]:
        settings = {
            "DERMSERVE_MODEL_REPOSITORY": str(job.repository.resolve()),
            "DERMSERVE_PRECISION": job.precision,
        }
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="dermserve-bench-") as state, starting(Path(state), settings) as stack:
            stack.until_ready()
            ready_s = time.perf_counter() - began
            headers = (("Authorization", f"Bearer {stack.create_key()}"),)
            connect: Http | TritonGrpc = TritonGrpc(stack.grpc, job.expected)
            if way == "http":
                connect = Http(stack.port, "/v1/predictions", "raw", job.expected, headers, right_status=201)
            began = time.perf_counter()  # making a key is no part of a start
            connect()((0, job.files[0]))
            yield Live(connect, stack.processes, ready_s + time.perf_counter() - began)

    return Entrant(name, f"our engine, {job.precision}", _repository_lines(job.repository), opened)


def visit(entrant: Entrant, files: Sequence[bytes], *, senders: int, seconds: float, warm_up_s: float) -> Visit:
    """Start the server, send to it, and end it.

    Raises:
        StartupError: it did not come up, or a sender could not connect.
    """
    with entrant.open() as live:
        members = live.processes()
        with CpuWatch(members) as cpu:
            window = drive(live.connect, Numbered(files), senders=senders, seconds=seconds, warm_up_s=warm_up_s)
        members = live.processes()
        return Visit(window, live.start_s, memory(members)[1], len(members), cpu.cores(window.began, window.ended))


def advantage(one: Series[Visit], other: Series[Visit]) -> list[float]:
    """How many times faster `one` is, for each round; both are read against the limit beside them."""
    return [mine / theirs if theirs else math.inf for mine, theirs in zip(one.ratios, other.ratios, strict=True)]


def noise(references: Sequence[float], rounds: int) -> float:
    """What a comparison of two equal servers stays below in 95 of 100 cases: a share, such as 0.04.

    Each window of the limit is read against its two neighbours, as a server is; so it stands for one server in one round.
    Of such ratios pairs are drawn, and the median over `rounds` of their quotients taken, as `advantage` is judged.
    """
    if len(references) < 3:
        return 0.0
    windows = np.asarray(references, np.float64)
    same = windows[1:-1] / ((windows[:-2] + windows[2:]) / 2)
    draw = np.random.default_rng(0)
    quotients = draw.choice(same, (20_000, rounds)) / draw.choice(same, (20_000, rounds))
    return float(np.percentile(np.median(quotients, axis=1), 95)) - 1


def row(entrant: Entrant, series: Series[Visit], best: Series[Visit]) -> dict[str, Any]:
    """One line of the table. `best` is dermserve's Triton path: `ours/it` is how many times faster that is."""
    window = pooled([one.window for one in series.results])
    per_second = median(one.window.per_second for one in series.results)
    cores = median(one.cores for one in series.results)
    faster = median(advantage(best, series))
    return {
        "inside": entrant.inside,
        "images/s": round(per_second, 2),
        "share": round(series.ratio, 3),
        "least": round(min(series.ratios), 3),
        "most": round(max(series.ratios), 3),
        "ours/it": round(faster, 2) if math.isfinite(faster) else None,
        **{f"{name} ms": round(value) for name, value in window.percentiles().items() if name != "p95"},
        "CPU ms": round(1e3 * cores / per_second, 1) if cores and per_second else None,
        "PSS MiB": round(median(one.pss for one in series.results) / 2**20),
        "processes": max(one.processes for one in series.results),
        "start s": round(median(one.start_s for one in series.results), 1),
        "lines": entrant.lines,
        "failed": window.failed,
    }


def faults(found: Alternation[Visit]) -> dict[str, dict[str, int]]:
    """What went wrong, by server; empty where nothing did."""
    told = {name: pooled([one.window for one in series.results]).faults for name, series in found.series.items()}
    return {name: kinds for name, kinds in told.items() if kinds}


def _repository_lines(repository: Path) -> int:
    """Lines of code and configuration of what Triton loads on a CPU."""
    model = repository / "melanoma"
    configuration = (model / "configs/openvino.pbtxt").read_text().splitlines()
    written = sum(bool(line.strip()) and line.strip()[0] != "#" for line in configuration)
    return code_lines((model / "1/model.py").read_text()) + written
