"""The commands that put a private stack beside the limit of the machine: `serve`, `transport`, `lane`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import options, report

_SENDERS = click.IntRange(1, 512)


@click.command()
@click.option(
    "--senders", default=(1, 2, 4, 8, 16, 32, 64), show_default=True, multiple=True, type=_SENDERS, help="Concurrency."
)
@click.option(
    "--saturation", default=16, show_default=True, type=_SENDERS, help="Senders at which the shares are judged."
)
@click.option("--goodput-ms", default=1000.0, show_default=True, help="Goodput counts answers within this time.")
@click.option("--min-grpc", default=0.92, show_default=True, help="Least share of the limit through Triton's gRPC.")
@click.option("--min-http", default=0.85, show_default=True, help="Least share of the limit through the HTTP API.")
@options.seconds(4.0)
@options.common
def serve(
    *,
    senders: tuple[int, ...],
    saturation: int,
    goodput_ms: float,
    min_grpc: float,
    min_http: float,
    seconds: float,
    plan: options.Plan,
) -> None:
    """Throughput and latency over concurrency, beside the in-process limit.

    JPEG files in, probabilities out: through Triton's gRPC, and through the HTTP API with history written. A private
    stack is started for it. Every answer is checked. The exit status tells whether nothing failed and both shares of
    the limit, at the concurrency of --saturation, reach their bounds.

    \b
    Examples:
      dermserve bench serve
      dermserve bench serve --senders 8 --senders 32 --saturation 32 --rounds 5
    """
    from benchmarks import limit, plots
    from benchmarks.alternation import steps
    from benchmarks.images import endless
    from benchmarks.senders import Grpc, Http
    from benchmarks.serve import Load, failed, faults, measure, rows
    from benchmarks.stack import running
    from dermserve.settings import Settings

    on = report.machine()
    levels = sorted({*((saturation,) if plan.quick else senders), saturation})
    with (
        running() as stack,
        limit.reference(
            plan.files, Settings().model_repository, seconds=plan.window(seconds, 2.5), trial_s=plan.window(1.0)
        ) as (arrangement, window),
    ):
        pictures = endless(plan.files)
        ways: dict[str, Any] = {"Triton gRPC": Grpc(stack.grpc), "HTTP API": Http(stack.url, stack.api_key)}
        loads = [Load(way, count, connect, pictures) for way, connect in ways.items() for count in levels]
        with report.progress(steps(len(loads), plan.rounds)) as announce:
            found = measure(
                loads, window, seconds=plan.window(seconds), rounds=plan.rounds, warm_up_s=1.0, announce=announce
            )
    table = rows(found, goodput_ms)
    report.show_all(f"Served, {plan.source}, {plan.rounds} rounds; limit: {arrangement}", table)
    asked = {"Triton gRPC": min_grpc, "HTTP API": min_http}
    judged = {Load(way, saturation, ways[way], pictures).name: bound for way, bound in asked.items()}
    bounds = [
        report.Bound(f"share of the limit: {name}", found.series[name].ratio, bound) for name, bound in judged.items()
    ]
    bounds.append(report.Bound("calls that failed", failed(found.series), 0, at_least=False))
    figures = {
        **plan.as_rows(), "limit": arrangement, "goodput_ms": goodput_ms, "rows": table,
        "faults": faults(found.series), **found.as_rows(),
    }  # fmt: skip
    plots.over_concurrency(plan.out / "serve.png", loads, found, judged, on)
    _end("serve", figures, bounds, on, plan)


@click.command()
@click.option("--senders", default=16, show_default=True, type=_SENDERS, help="That send images singly.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(2, 64), help="Images in one request.")
@click.option("--batch-senders", default=4, show_default=True, type=_SENDERS, help="That send such requests.")
@click.option("--min-batch", default=0.85, show_default=True, help="Least share of the decode limit in batches.")
@click.option("--min-single", default=0.65, show_default=True, help="Least share of the decode limit singly.")
@options.seconds(5.0)
@options.common
def transport(
    *,
    senders: int,
    batch: int,
    batch_senders: int,
    min_batch: float,
    min_single: float,
    seconds: float,
    plan: options.Plan,
) -> None:
    """What the server could move if the model were free, beside the limit of decoding.

    A private stack serves a copy of the model repository whose network answers constants at once. Images go singly
    through Triton's HTTP and gRPC and through the HTTP API, and in batches through gRPC. The load generator takes its
    part of the same cores, told as `client_cores`; the bound on single images is on Triton's HTTP, where it takes least.

    \b
    Example:
      dermserve bench transport --senders 32
    """
    import tempfile

    from benchmarks import limit, noop, plots
    from benchmarks.alternation import steps
    from benchmarks.images import Batches, endless
    from benchmarks.senders import Grpc, Http, TritonHttp
    from benchmarks.serve import Load, failed, faults, measure, rows
    from benchmarks.stack import running
    from dermserve.settings import Settings

    on = report.machine()
    with (
        tempfile.TemporaryDirectory(prefix="dermserve-noop-") as folder,
        running(repository=noop.copy(Settings().model_repository, Path(folder))) as stack,
        limit.reference(plan.files, None, seconds=plan.window(seconds, 2.5), trial_s=plan.window(1.0)) as (
            arrangement,
            window,
        ),
    ):
        pictures = endless(plan.files)
        loads = [
            Load("Triton HTTP, single", senders, TritonHttp(stack.triton_http), pictures),
            Load("Triton gRPC, single", senders, Grpc(stack.grpc), pictures),
            Load(f"Triton gRPC, batches of {batch}", batch_senders, Grpc(stack.grpc), Batches(pictures, batch), batch),
            Load("HTTP API, single", senders, Http(stack.url, stack.api_key), pictures),
        ]
        with report.progress(steps(len(loads), plan.rounds)) as announce:
            found = measure(loads, window, seconds=plan.window(seconds), rounds=plan.rounds, announce=announce)
    table = rows(found, 1000.0)
    report.show_all(f"Transport, {plan.source}, {plan.rounds} rounds; limit: decoding, {arrangement}", table)
    judged = {loads[0].name: min_single, loads[2].name: min_batch}
    bounds = [
        report.Bound(f"share of decoding: {name}", found.series[name].ratio, bound) for name, bound in judged.items()
    ]
    bounds.append(report.Bound("calls that failed", failed(found.series), 0, at_least=False))
    figures = {
        **plan.as_rows(), "limit": arrangement, "rows": table, "faults": faults(found.series), **found.as_rows()
    }  # fmt: skip
    plots.shares(plan.out / "transport.png", found, judged, on)
    _end("transport", figures, bounds, on, plan)


@click.command()
@click.option("--senders", default=32, show_default=True, type=_SENDERS, help="Of the bulk stream.")
@click.option("--max-ratio", default=2.5, show_default=True, help="Largest p95 beside the stream by p95 when idle.")
@options.seconds(12.0)
@options.common
def lane(*, senders: int, max_ratio: float, seconds: float, plan: options.Plan) -> None:
    """One person's uploads while a bulk stream fills the server, against an idle server.

    The person sends as the upload page does, the stream with an API key. The exit status tells whether the person's
    p95 stays within its bound and every image of the stream was answered.

    \b
    Example:
      dermserve bench lane --senders 64
    """
    from benchmarks import plots
    from benchmarks.alternation import steps
    from benchmarks.closed_loop import pooled
    from benchmarks.lane import measure
    from benchmarks.stack import running

    on = report.machine()
    with running() as stack, report.progress(steps(1, plan.rounds)) as announce:
        found = measure(
            stack, plan.files, senders=senders, seconds=plan.window(seconds), rounds=plan.rounds, announce=announce
        )
    idle, busy, bulk = pooled(found.idle), pooled(found.p95.results), pooled(found.bulk)
    table = {
        "idle server": idle.as_rows(),
        "beside a bulk stream": busy.as_rows(),
        f"the stream, {senders} senders": bulk.as_rows(),
    }
    report.show_all(f"Interactive lane, {plan.source}, {plan.rounds} rounds", table)
    bounds = [
        report.Bound("interactive p95 by its idle value", found.p95.ratio, max_ratio, at_least=False),
        report.Bound("images of the stream that were lost", bulk.failed, 0, at_least=False),
        report.Bound("uploads of the person that failed", idle.failed + busy.failed, 0, at_least=False),
    ]
    figures: dict[str, Any] = {**plan.as_rows(), "senders": senders, "p95": found.p95.as_rows(), "rows": table}
    plots.lane(plan.out / "lane.png", idle, busy, on)
    _end("lane", figures, bounds, on, plan)


def _end(
    name: str, figures: dict[str, Any], bounds: list[report.Bound], on: dict[str, Any], plan: options.Plan
) -> None:
    if not report.conclude(name, figures, bounds, on, plan.out) and not plan.quick:
        sys.exit(1)
