"""A run of locust's users: locust in a process of its own, and what its requests sum up to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from dermserve.errors import StartupError

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
DAYFILE = Path(__file__).with_name("dayfile.py")
_CLASSES = {"hospital": ("Hospital",), "clinician": ("Clinician",), "both": ("Hospital", "Clinician"), "day": ()}


@dataclass(frozen=True)
class Plan:
    """Who sends what: `users` of a `kind` for `seconds`; `rate` in images/s bounds one hospital, 0 does not.

    The kind `day` lets a day's mix of hospitals and clinicians pass within `seconds`, `users` at its busiest hour.
    """

    url: str
    users: int
    seconds: int
    kind: str
    rate: float
    allow_remote: bool

    def as_rows(self) -> dict[str, Any]:
        return asdict(self)


class Request(NamedTuple):
    """One request: what it was, when it began (seconds), how long it took (ms), what was wrong (None: nothing)."""

    name: str
    start: float
    ms: float
    fault: str | None


def run(plan: Plan, api_key: str | None, page: Path, images: Path | None = None) -> list[Request]:
    """Run locust to the plan's end; returns every request, in the order of their answers.

    Args:
        plan: who sends what.
        api_key: what hospitals send with.
        page: becomes locust's own report, HTML.
        images: folder of JPEG files; see `images.pictures`.

    Raises:
        StartupError: locust did not come to its end, or made no request.
    """
    with tempfile.TemporaryDirectory(prefix="dermserve-load-") as folder:
        samples = Path(folder) / "requests.jsonl"
        file = DAYFILE if plan.kind == "day" else LOCUSTFILE
        command = [
            sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary",
            "--loglevel", "WARNING", "--host", plan.url, "--users", str(plan.users),
            "--spawn-rate", str(plan.users), "--run-time", f"{plan.seconds}s", "--stop-timeout", "30s",
            "--rate", str(plan.rate), "--samples", str(samples), "--exit-code-on-error", "0", "--html", str(page),
            *(["--images", str(images)] if images else []),
            *(["--allow-remote"] if plan.allow_remote else []), *_CLASSES[plan.kind],
        ]  # fmt: skip
        page.parent.mkdir(parents=True, exist_ok=True)
        # In the environment, not on the command line, where every user of the machine could read the key.
        environment = os.environ | {"DERMSERVE_BENCH_API_KEY": api_key or ""}
        ended = subprocess.run(
            command, env=environment, timeout=plan.seconds + 120, check=False, stderr=subprocess.PIPE, text=True
        )
        if ended.returncode != 0 or not samples.exists():
            raise StartupError(f"locust ended with status {ended.returncode}: {ended.stderr.strip()[-2000:]}")
        requests = read(samples)
    if not requests:
        raise StartupError(f"Not one request was made to {plan.url}.")
    return requests


def read(samples: Path) -> list[Request]:
    """The requests that the locust file noted, one JSON object per line."""
    return [Request(**json.loads(line)) for line in samples.read_text().splitlines()]


def summarise(requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Per kind of request: count, failures, throughput and percentiles of the good ones' latency in ms.

    Throughput counts good answers over the time from the first start to the last end of that kind of request.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name in sorted({request.name for request in requests}):
        mine = [request for request in requests if request.name == name]
        good = [request.ms for request in mine if request.fault is None]
        span = max(request.start + request.ms / 1e3 for request in mine) - min(request.start for request in mine)
        faults = sorted({request.fault for request in mine if request.fault is not None})
        summary[name] = {
            "requests": len(mine),
            "failures": len(mine) - len(good),
            "per_second": len(good) / span if span > 0 else 0.0,
            **{f"{key}_ms": value for key, value in (report.percentiles(good) if good else {}).items()},
            **({"faults": "; ".join(faults[:5])} if faults else {}),
        }
    return summary


def plot(requests: Sequence[Request], path: Path) -> Path:
    """Draw good predictions per second over time, and their share within a latency; returns the path.

    Page views are left out: they are few, and their figures are in the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    began = min(request.start for request in requests)
    figure, (over_time, shares) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in sorted(
        {request.name for request in requests if request.fault is None and request.name.endswith("image")}
    ):
        good = [request for request in requests if request.name == name and request.fault is None]
        ends = np.array([request.start + request.ms / 1e3 - began for request in good])
        per_second = np.bincount(ends.astype(int))
        whole = per_second[:-1] if per_second.size > 1 else per_second  # the last second is not a whole one
        over_time.plot(np.arange(whole.size) + 0.5, whole, marker=".", label=name)
        latency = np.sort([request.ms for request in good])
        shares.step(latency, np.arange(1, latency.size + 1) / latency.size, where="post", label=name)
    over_time.set(xlabel="time (s)", ylabel="predictions per second", ylim=(0, None))
    shares.set(xlabel="latency (ms)", ylabel="share of predictions", xscale="log", ylim=(0, 1))
    if over_time.get_legend_handles_labels()[0]:
        over_time.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
