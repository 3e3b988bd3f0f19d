"""The command `dermserve bench where`."""

from __future__ import annotations

import click

from benchmarks import options, report


@click.command()
@click.option("--senders", default=16, show_default=True, type=click.IntRange(1, 512), help="That send at a time.")
@options.seconds(8.0)
@options.common
def where(*, senders: int, seconds: float, plan: options.Plan) -> None:
    """Milliseconds of processor time that one image costs, by process: Triton's gRPC and the HTTP API.

    Where the machine is saturated, throughput is cores divided by their sum. Beside them stands what decoding and the
    network cost in the in-process limit.

    \b
    Example:
      DERMSERVE_PRECISION=FP32 dermserve bench where
    """
    from statistics import median

    from benchmarks import limit, plots, where
    from benchmarks.images import endless
    from benchmarks.senders import Grpc, Http
    from benchmarks.stack import running
    from dermserve.settings import Settings

    on = report.machine()
    found: dict[str, list[where.Spent]] = {}
    limits: list[float] = []
    with (
        running() as stack,
        limit.reference(
            plan.files, Settings().model_repository, seconds=plan.window(3.0), trial_s=plan.window(1.0)
        ) as (
            arrangement,
            window,
        ),
    ):
        pictures = endless(plan.files)
        ways = {"Triton gRPC": Grpc(stack.grpc), "HTTP API": Http(stack.url, stack.api_key)}
        for number in range(plan.rounds):
            for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
                limits.append(window())
                spent = where.measure(stack, ways[way], pictures, senders=senders, seconds=plan.window(seconds))
                found.setdefault(way, []).append(spent)
    cores = limit.cores()
    parts = sorted({part for every in found.values() for one in every for part in one.ms})
    table: dict[str, dict[str, float]] = {
        part: {way: median(one.ms.get(part, 0.0) for one in every) for way, every in found.items()} for part in parts
    }
    table["sum"] = {way: median(one.total for one in every) for way, every in found.items()}
    table[f"cores by images/s ({cores} cores)"] = {
        way: median(1e3 * cores / one.window.per_second for one in every) for way, every in found.items()
    }
    table["the limit, likewise"] = dict.fromkeys(found, 1e3 * cores / median(limits))
    rows = {part: {way: round(ms, 2) for way, ms in row.items()} for part, row in table.items()}
    report.show_all(f"ms of processor time an image, {plan.source}, {plan.rounds} rounds; limit: {arrangement}", rows)
    plots.parts(plan.out / "where.png", {way: {part: rows[part][way] for part in parts} for way in found}, on)
    failed = sum(one.window.failed for every in found.values() for one in every)
    report.conclude("where", {**plan.as_rows(), "limit": arrangement, "ms": rows, "failed": failed}, [], on, plan.out)
