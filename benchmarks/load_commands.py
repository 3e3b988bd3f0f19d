"""The command `dermserve bench load`: arrivals that do not wait for answers, or locust's users."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from benchmarks import options, report
from dermserve.errors import StartupError

if TYPE_CHECKING:
    from benchmarks.capacity import Capacity
    from benchmarks.load import Plan
    from benchmarks.open_loop import Target
    from benchmarks.senders import Http
    from benchmarks.stack import Stack

_SATURATING = 32


@click.command()
@click.option("--driver", default="open", show_default=True, type=click.Choice(["open", "locust"]))
@click.option("--url", help="A running stack.  [default: a private one is started]")
@click.option(
    "--api-key", envvar="DERMSERVE_BENCH_API_KEY", help="For --url: what to send with.  [$DERMSERVE_BENCH_API_KEY]"
)
@click.option("--allow-remote", is_flag=True, help="For --url: send to another machine, too.")
@click.option("--bound-ms", default=1000.0, show_default=True, help="open: bound of the p99, from due to answered.")
@click.option("--min-share", default=0.1, show_default=True, help="open: least capacity by the in-process limit.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="open: of the arrivals.")
@click.option("--overload", is_flag=True, help="open: then 3 times the capacity, for 60 s.")
@click.option("--factor", default=3.0, show_default=True, help="--overload: arrivals by what can be answered.")
@click.option("--overload-seconds", default=60.0, show_default=True, help="--overload: how long.")
@click.option(
    "--deadline-ms", default=10_000.0, show_default=True, help="--overload: goodput counts answers within it."
)
@click.option("--min-goodput", default=0.9, show_default=True, help="--overload: least goodput by the peak.")
@click.option("--max-gib", default=2.5, show_default=True, help="--overload: most memory (PSS) of all processes.")
@click.option("--users", default=8, show_default=True, type=click.IntRange(1, 1000), help="locust: senders at a time.")
@click.option(
    "--kind", default="day", show_default=True, type=click.Choice(["hospital", "clinician", "both", "day"]),
    help="locust: who sends; `day` is a day's mix within --seconds.",
)  # fmt: skip
@click.option("--rate", default=0.0, show_default=True, help="locust: images/s of one hospital; 0: as answers come.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    help="open: of a run of the search [20]; locust: of the whole run [120].",
)
@options.common
def load(
    *, driver: str, url: str | None, api_key: str | None, allow_remote: bool, plan: options.Plan, **asked: Any
) -> None:
    """The highest rate of arrivals that keeps the p99 within a bound; far beyond it; or locust's users.

    The open loop lets images arrive as a Poisson process, whether or not the server keeps up, and counts latency from
    the moment an image was due. It searches for the capacity and confirms it in turn with the in-process limit; with
    --overload it then sends three times as much and looks at goodput, refusals and memory. locust's users wait for
    their answers, as people and gateways do, and leave locust's own report page. Every answer is checked. The exit
    status tells whether all bounds hold.

    \b
    Examples:
      dermserve bench load --overload
      dermserve bench load --bound-ms 500 --rounds 5
      dermserve bench load --driver locust --kind day --users 12 --seconds 240
      dermserve bench load --driver locust --kind hospital --url http://127.0.0.1:8000 --users 8 --seconds 60
    """
    if url is not None:
        from benchmarks.target import check

        url = check(url, allow_remote=allow_remote)
        if not api_key and not (driver == "locust" and asked["kind"] == "clinician"):
            raise StartupError(
                "A hospital needs an API key: make one with `dermserve admin create-api-key --name bench` and put it "
                "into DERMSERVE_BENCH_API_KEY."
            )
    from benchmarks.load import Plan
    from benchmarks.open_loop import Target
    from benchmarks.senders import Http, with_key

    seconds = 5 if plan.quick else int(asked["seconds"] or 120)
    with _target(url, api_key) as (address, key, stack):
        if driver == "locust":
            held = _locust(
                Plan(address, asked["users"], seconds, asked["kind"], asked["rate"], allow_remote), key, plan
            )
        else:
            held, capacity = _open(Target(address, with_key(key)), plan, asked)
            if asked["overload"]:
                held = _overload(Http(address, key), stack, capacity, plan, asked) and held
    if not held and not plan.quick:
        sys.exit(1)


@contextmanager
def _target(url: str | None, api_key: str | None) -> Iterator[tuple[str, str, Stack | None]]:
    if url is not None:
        yield url, api_key or "", None
        return
    from benchmarks.stack import running

    with running() as stack:
        yield stack.url, stack.api_key, stack


def _locust(users: Plan, api_key: str, plan: options.Plan) -> bool:
    from benchmarks.load import plot, run, summarise

    on = report.machine()
    click.echo(f"{users.users} users send to {users.url} for {users.seconds} s …", err=True)
    requests = run(users, api_key, plan.out / "locust.html", plan.folder)
    summary = summarise(requests)
    report.show_all(f"{users.kind}, {users.users} users for {users.seconds} s", summary)
    failures = sum(int(rows["failures"] or 0) for rows in summary.values())
    plot(requests, plan.out / "locust.png")
    bounds = [report.Bound("requests that failed", failures, 0, at_least=False)]
    return report.conclude(
        "locust", {"images": plan.source, "plan": users.as_rows(), "requests": summary}, bounds, on, plan.out
    )


def _open(to: Target, plan: options.Plan, asked: dict[str, Any]) -> tuple[bool, float]:
    from functools import partial

    from benchmarks import limit, plots
    from benchmarks.capacity import search
    from benchmarks.images import endless
    from benchmarks.open_loop import drive
    from dermserve.settings import Settings

    on, bound_ms = report.machine(), asked["bound_ms"]
    trial_s = plan.window(asked["seconds"] or 20.0)
    with (
        limit.reference(
            plan.files, Settings().model_repository, seconds=plan.window(3.0), trial_s=plan.window(1.0)
        ) as (arrangement, window),
        report.progress(5 + 2 * plan.rounds + 1) as announce,
    ):
        found = search(
            partial(drive, to, endless(plan.files)), window, bound_ms=bound_ms, trial_s=trial_s,
            confirm_s=plan.window(1.5 * trial_s),
            rounds=plan.rounds, seed=asked["seed"], resolution=0.5 if plan.quick else 0.03, announce=announce,
        )  # fmt: skip
    table = _table(found, bound_ms)
    report.show_all(f"Open loop, {plan.source}, p99 within {bound_ms:g} ms; limit: {arrangement}", table)
    click.echo(f"capacity: {found.rate:.1f} images/s, {found.share:.2f} of the in-process limit")
    wrong = sum(run.count("wrong") for run in found.runs)
    bounds = [
        report.Bound("capacity by the in-process limit", found.share, asked["min_share"]),
        report.Bound("wrong answers at capacity", wrong, 0, at_least=False),
    ]
    figures = {
        **plan.as_rows(), "limit": arrangement, "bound_ms": bound_ms, "share": round(found.share, 3),
        "capacity": round(found.rate, 2), "rows": table,
        "confirmed": found.confirmed.as_rows() if found.confirmed else None,
    }  # fmt: skip
    plots.capacity(plan.out / "load.png", found.trials, found.runs, bound_ms, on)
    return report.conclude("load", figures, bounds, on, plan.out), found.rate


def _overload(http: Http, stack: Stack | None, capacity: float, plan: options.Plan, asked: dict[str, Any]) -> bool:
    from functools import partial

    from benchmarks import plots
    from benchmarks.capacity import overload
    from benchmarks.closed_loop import drive as saturate
    from benchmarks.images import endless
    from benchmarks.open_loop import Target, drive
    from benchmarks.senders import with_key
    from benchmarks.stack import MemoryWatch

    on, pictures = report.machine(), endless(plan.files)
    seconds = 3.0 if plan.quick else asked["overload_seconds"]
    click.echo(f"{asked['factor']:g} times the capacity arrives for {seconds:.0f} s …", err=True)
    watch = MemoryWatch(stack, every_s=2.0) if stack is not None else None
    with watch or nullcontext():
        beyond = overload(
            partial(drive, Target(http.url, with_key(http.api_key)), pictures),
            partial(saturate, http, pictures, senders=_SATURATING, seconds=plan.window(10.0), warm_up_s=1.0),
            capacity=capacity, factor=asked["factor"], seconds=seconds, seed=asked["seed"] + 1000,
        )  # fmt: skip
    samples = watch.samples if watch is not None else []
    bound_ms, deadline_ms = asked["bound_ms"], asked["deadline_ms"]
    rows: dict[str, Any] = {
        "peak": round(beyond.peak, 2),
        "goodput_share": round(beyond.share(deadline_ms), 3),
        f"goodput_share_{bound_ms:g}_ms": round(beyond.share(bound_ms), 3),
        **beyond.run.as_rows(deadline_ms),
    }
    bounds = [
        report.Bound(f"goodput within {deadline_ms:g} ms by the peak", beyond.share(deadline_ms), asked["min_goodput"]),
        report.Bound("not refused as they should be", rows["wrong"], 0, at_least=False),
        report.Bound("failed at saturation", beyond.before.failed + beyond.after.failed, 0, at_least=False),
    ]
    if watch is not None:
        rss, pss = watch.peak()
        rows |= {"peak_pss_gib": round(pss / 2**30, 3), "peak_rss_gib": round(rss / 2**30, 3)}
        rows["pss_before_gib"] = round(samples[0].pss / 2**30, 3)
        bounds.append(report.Bound("peak memory (PSS), GiB", rows["peak_pss_gib"], asked["max_gib"], at_least=False))
    report.show(f"Overload: {beyond.run.rate:.0f} arrivals per second for {seconds:.0f} s", rows)
    plots.overload(plan.out / "overload.png", beyond, deadline_ms, samples, on)
    figures = {**plan.as_rows(), "deadline_ms": deadline_ms, "faults": beyond.run.faults, "figures": rows}
    return report.conclude("overload", figures, bounds, on, plan.out)


def _table(found: Capacity, bound_ms: float) -> dict[str, dict[str, Any]]:
    lines = {f"search {number}": run.as_rows(bound_ms) for number, run in enumerate(found.trials, 1)}
    return lines | {f"capacity {number}": run.as_rows(bound_ms) for number, run in enumerate(found.runs, 1)}
