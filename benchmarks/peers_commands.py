"""`dermserve bench peers`: the servers that one would pick instead, beside dermserve."""

from __future__ import annotations

import sys
from statistics import median

import click

from benchmarks import options, report
from benchmarks.peers.catalogue import PEERS

_ROUNDS_TO_RANK = 5
_FASTER = {"FP32": 2.2, "INT8": 3.3}
_TUNED = {"channels-last": "PyTorch eager, channels_last", "compiled": "PyTorch, torch.compile"}


@click.command()
@click.option("--given-engine", is_flag=True, help="Run dermserve's engine inside the others: compare servers alone.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    type=click.Choice([one.name for one in PEERS], case_sensitive=False),
    help="Only this one; may be repeated.",
)
@click.option("--tuned", is_flag=True, help="FastAPI also with channels_last and with torch.compile; without a bound.")
@click.option("--senders", default=8, show_default=True, type=click.IntRange(1, 512), help="Images on their way.")
@click.option(
    "--min-faster",
    type=float,
    help="Least factor by which Triton's gRPC is faster than each.  [default: 2.2; 3.3 where INT8 is served]",
)
@options.seconds(10.0)
@options.common
def peers(
    *,
    given_engine: bool,
    servers: tuple[str, ...],
    tuned: bool,
    senders: int,
    min_faster: float | None,
    seconds: float,
    plan: options.Plan,
) -> None:
    """Other servers beside dermserve: same weights, same JPEG files, same client, every answer checked.

    FastAPI, LitServe, BentoML, Ray Serve and Mosec with PyTorch in FP32, set up as their documentation recommends; or,
    with --given-engine, with dermserve's decoding and engine inside, in at least 5 rounds. One server runs at a time, in
    turn with the in-process limit. The exit status tells whether nothing failed and Triton's gRPC is faster than
    each by --min-faster, or, with --given-engine, not slower than any by more than the noise of equal code.

    The servers have an environment of their own: `deploy/setup.sh peers`.

    \b
    Examples:
      dermserve bench peers
      dermserve bench peers --server FastAPI --tuned
      dermserve bench peers --given-engine --rounds 7
    """
    from benchmarks import limit
    from benchmarks.alternation import alternate, steps
    from benchmarks.peers import comparison, plot, process, reference
    from dermserve.settings import Settings

    process.python()  # says at once where the servers are missing
    on, repository = report.machine(), Settings().model_repository
    chosen = [one for one in PEERS if not servers or one.name in servers]
    expected, precision = reference.served(repository, plan.files)
    job, inside = comparison.Job(repository, plan.files, expected), f"our engine, {precision}"
    entrants = [comparison.ours(way, inside, job) for way in ("grpc", "http")]
    best, facts = entrants[0].name, {}
    if given_engine:
        rivals = [comparison.peer(one, "engine", inside, job) for one in chosen]
    else:
        job = comparison.Job(repository, plan.files, reference.fp32(repository, plan.files))
        facts = reference.require_same(job, ["torch", *(_TUNED if tuned else ())])
        rivals = [comparison.peer(one, "torch", "PyTorch eager, FP32", job) for one in chosen]
        if tuned:
            plain = PEERS[0]
            entrants += [
                comparison.peer(plain, choice, f"{words}, FP32", job, f"{plain.name}, {choice}")
                for choice, words in _TUNED.items()
            ]
    entrants += rivals
    rounds = plan.rounds if plan.quick or not given_engine else max(plan.rounds, _ROUNDS_TO_RANK)
    turns = {
        one.name: lambda one=one: comparison.visit(
            one, plan.files, senders=senders, seconds=plan.window(seconds), warm_up_s=plan.window(3.0)
        )
        for one in entrants
    }
    with (
        limit.reference(plan.files, repository, seconds=plan.window(seconds, 5.0), trial_s=plan.window(1.0)) as (
            how,
            window,
        ),
        report.progress(steps(len(entrants), rounds)) as announce,
    ):
        found = alternate(turns, window, lambda one: one.window.per_second, rounds=rounds, announce=announce)
    rows = {one.name: comparison.row(one, found.series[one.name], found.series[best]) for one in entrants}
    noise = comparison.noise(found.references, rounds)
    kind = "given our engine" if given_engine else "as documented"
    title = f"Peers {kind}, {senders} senders, {plan.source}, {rounds} rounds"
    report.show_all(f"{title}; limit: {how}; noise of equal code {noise:.1%}", rows)
    bounds = []
    for one in rivals:
        faster = median(comparison.advantage(found.series[best], found.series[one.name]))
        if given_engine:
            bounds.append(report.Bound(f"{one.name} by Triton's gRPC", 1 / faster, 1 + noise, at_least=False))
        else:
            least = _FASTER[precision] if min_faster is None else min_faster
            bounds.append(report.Bound(f"Triton's gRPC by {one.name}", faster, least))
    lost = sum(row["failed"] for row in rows.values())
    bounds.append(report.Bound("images without a right answer", lost, 0, at_least=False))
    figures = {
        **plan.as_rows(), "rounds": rounds, "senders": senders, "limit": how, "noise": round(noise, 4), **facts,
        "rows": rows, "faults": comparison.faults(found), **found.as_rows(),
    }  # fmt: skip
    name = "peers-engine" if given_engine else "peers"
    plot.draw(plan.out / f"{name}.png", title, rows, on)
    held = report.conclude(name, figures, bounds, on, plan.out)
    if lost or not (held or plan.quick):
        sys.exit(1)
