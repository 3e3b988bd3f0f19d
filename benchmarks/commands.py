"""`dermserve bench`: one command per figure that this project shows. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks import (
    load_commands,
    options,
    pages_commands,
    peers_commands,
    precision_commands,
    report,
    served_commands,
    where_commands,
)
from benchmarks.decode import decode

_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=report.RESULTS,
    help="Folder for the results.  [default: benchmarks/results]",
)


@click.group()
def bench() -> None:
    """Measure this machine, a running stack, or a cold start.

    \b
    Examples:
      dermserve bench limit
      dermserve bench cold
      dermserve bench serve --rounds 5
    """


_COMMANDS = (
    served_commands.serve,
    served_commands.transport,
    served_commands.lane,
    load_commands.load,
    peers_commands.peers,
    precision_commands.precision,
    where_commands.where,
    pages_commands.pages,
    decode,
)
for _command in _COMMANDS:
    bench.add_command(_command)


@bench.command()
@options.seconds(3.0)
@options.common
def limit(*, seconds: float, plan: options.Plan) -> None:
    """Images per second without a server: the ceiling for everything served from this machine.

    Decoding and the network on one worker of one thread for each core, as threads and as processes, in batches of
    1 and 4; all are reported, the best one is the ceiling. Decoding alone is the ceiling of `bench transport`; with flags
    and distance it is the work that the HTTP API asks for.

    \b
    Example:
      dermserve bench limit --images lesions/ --rounds 5
    """
    from benchmarks import limit as limits
    from benchmarks import plots
    from dermserve.model_card import ONNX_PATH, sha256
    from dermserve.settings import Settings

    on = report.machine()
    repository = Settings().model_repository
    with report.progress(plan.rounds * (len(limits.ARRANGEMENTS) + 3 * len(limits.KINDS))) as announce:
        found = limits.measure(
            plan.files, repository, seconds=plan.window(seconds), rounds=plan.rounds, announce=announce
        )
    rows = found.as_rows()
    report.show_all(f"In-process limit (images/s), {plan.source}, {plan.rounds} rounds", rows)
    click.echo(f"ceiling: {found.ceiling:.1f} images/s ({found.best})")
    decode = rows[f"decode alone, {found.best_decoder}"]["median"]
    figures = {
        **plan.as_rows(), "ceiling": round(found.ceiling, 2), "best": str(found.best), "decode": decode,
        "workers": limits.cores(), "model_sha256": sha256(repository / ONNX_PATH), "rows": rows,
    }  # fmt: skip
    plots.limit(plan.out / "limit.png", rows, on)
    report.conclude("limit", figures, [], on, plan.out)


@bench.command()
@click.option(
    "--predictions", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Before memory is read."
)
@click.option(
    "--starts", default=2, show_default=True, type=click.IntRange(1, 10), help="The first one sets up a database."
)
@click.option("--max-seconds", default=20.0, show_default=True, help="Fail if a first prediction takes longer.")
@click.option("--max-gib", default=2.5, show_default=True, help="Fail if more memory is resident.")
@_OUT
def cold(predictions: int, starts: int, max_seconds: float, max_gib: float, out: Path) -> None:
    """Start a stack of its own, time its first prediction, read the memory of all its processes, and stop it.

    It runs beside a stack that is already up: own ports, own state folder. The exit status tells whether both bounds
    hold: seconds from the start of `dermserve serve` to the first 201, and resident memory of the process tree.
    """
    from benchmarks.cold import measure, problems

    on = report.machine()
    found = measure(starts=starts, predictions=predictions)
    for number, start in enumerate(found, 1):
        report.show(f"Start {number} of {starts}", start.as_rows())
    wrong = problems(found, max_seconds=max_seconds, max_gib=max_gib)
    figures = {
        "bounds": {"seconds": max_seconds, "gib": max_gib},
        "held": not wrong,
        "starts": [start.as_rows() for start in found],
    }
    click.echo(f"written: {report.write(out / 'cold.json', figures, on)}")
    for line in wrong:
        click.echo(f"dermserve bench cold: {line}", err=True)
    if wrong:
        sys.exit(1)


@bench.command()
@_OUT
def page(out: Path) -> None:
    """Write docs/performance.md from the results files; no figure in it is copied by hand.

    \b
    Example:
      dermserve bench page
    """
    from benchmarks import page as performance
    from dermserve.model_card import ModelCard
    from dermserve.settings import REPOSITORY_ROOT, Settings

    path = REPOSITORY_ROOT / "docs/performance.md"
    performance.write(out, ModelCard.read(Settings().model_repository), path)
    click.echo(path)
