"""The command `dermserve bench precision`: what INT8 is worth from end to end."""

from __future__ import annotations

import sys
from statistics import median

import click

from benchmarks import options, report

_PRECISIONS = ("FP32", "INT8")


@click.command()
@click.option("--senders", default=16, show_default=True, type=click.IntRange(1, 512), help="That send at a time.")
@click.option("--min-ratio", default=1.5, show_default=True, help="Least throughput of INT8, in FP32's.")
@options.seconds(6.0)
@options.common
def precision(*, senders: int, min_ratio: float, seconds: float, plan: options.Plan) -> None:
    """Throughput of INT8 against FP32, from JPEG files to probabilities, in turn.

    Two private stacks differ in DERMSERVE_PRECISION alone; one works while the other waits. The bound is on Triton's gRPC;
    the HTTP API, with history, stands beside it. Whether INT8 may be served at all is decided by the gate at export.

    \b
    Example:
      dermserve bench precision --rounds 5
    """
    from benchmarks import limit, plots
    from benchmarks.alternation import steps
    from benchmarks.images import endless
    from benchmarks.senders import Grpc, Http
    from benchmarks.serve import Load, failed, faults, measure, rows
    from benchmarks.stack import running
    from dermserve.errors import StartupError
    from dermserve.model_card import ModelCard
    from dermserve.settings import Settings

    repository = Settings().model_repository
    record = ModelCard.read(repository).engines.get("openvino")
    if record is None or record.precision != "INT8":
        raise StartupError("The model card has no INT8 engine: it did not pass the gate, or was not exported.")
    on = report.machine()
    with (
        running({"DERMSERVE_PRECISION": "FP32"}) as fp32,
        running({"DERMSERVE_PRECISION": "INT8"}) as int8,
        limit.reference(plan.files, repository, seconds=plan.window(seconds, 2.5), trial_s=plan.window(1.0)) as (
            arrangement,
            window,
        ),
    ):
        pictures = endless(plan.files)
        loads = [
            Load(f"{way} {name}", senders, connect, pictures)
            for name, stack in zip(_PRECISIONS, (fp32, int8), strict=True)
            for way, connect in (("Triton gRPC", Grpc(stack.grpc)), ("HTTP API", Http(stack.url, stack.api_key)))
        ]
        with report.progress(steps(len(loads), plan.rounds)) as announce:
            found = measure(loads, window, seconds=plan.window(seconds), rounds=plan.rounds, announce=announce)
    table = rows(found, 1000.0)
    report.show_all(f"Precision, {plan.source}, {plan.rounds} rounds; limit: {arrangement}", table)
    values = {load.way: found.series[load.name].values for load in loads}
    ratios = {
        way: [b / a for a, b in zip(values[f"{way} FP32"], values[f"{way} INT8"], strict=True)]
        for way in ("Triton gRPC", "HTTP API")
    }
    report.show("INT8 in FP32's throughput", {way: round(median(each), 3) for way, each in ratios.items()})
    bounds = [
        report.Bound("INT8 by FP32, Triton gRPC", median(ratios["Triton gRPC"]), min_ratio),
        report.Bound("calls that failed", failed(found.series), 0, at_least=False),
    ]
    plots.shares(plan.out / "precision.png", found, {}, on)
    figures = {
        **plan.as_rows(), "limit": arrangement, "rows": table, "faults": faults(found.series),
        "ratios": {way: [round(one, 4) for one in each] for way, each in ratios.items()}, **found.as_rows(),
    }  # fmt: skip
    if not report.conclude("precision", figures, bounds, on, plan.out) and not plan.quick:
        sys.exit(1)
