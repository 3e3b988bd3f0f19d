"""`dermserve bench peers`: the servers that one would pick instead, beside dermserve."""

from __future__ import annotations

import sys
from statistics import median

import click

from benchmarks import options, report
from benchmarks.peers.catalogue import PEERS

_ROUNDS_TO_RANK = 5
_OURS = "dermserve, Triton gRPC"
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
    help="Least factor by which Triton's gRPC is faster than each.  [default: 2.2 in FP32, 3.3 in INT8]",
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
    with --given-engine, with dermserve's decoding and engine inside, in at least 5 rounds. Where INT8 is served,
    dermserve is measured in FP32, too. One server runs at a time, in turn with the in-process limit. The exit status
    tells whether nothing failed and Triton's gRPC is faster than each by --min-faster, or, with --given-engine, not
    slower than any by more than the noise of equal code.

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
    on, repository, asked = report.machine(), Settings().model_repository, Settings().precision
    chosen = [one for one in PEERS if not servers or one.name in servers]
    answers, precision = reference.expected(repository, plan.files, None if asked == "auto" else asked)
    job = comparison.Job(repository, plan.files, answers, precision)
    entrants = [comparison.ours("grpc", job, _OURS), comparison.ours("http", job, "dermserve, HTTP API with history")]
    judged, facts = {_OURS: _FASTER[precision]}, {}
    if given_engine:
        rivals = [comparison.peer(one, "engine", f"our engine, {precision}", job) for one in chosen]
    else:
        in_fp32 = job
        if precision != "FP32":
            in_fp32 = comparison.Job(repository, plan.files, *reference.expected(repository, plan.files, "FP32"))
            equal = comparison.ours("grpc", in_fp32, f"{_OURS}, FP32")
            entrants.append(equal)
            judged[equal.name] = _FASTER["FP32"]
        facts = reference.require_same(in_fp32, ["torch", *(_TUNED if tuned else ())])
        rivals = [comparison.peer(one, "torch", "PyTorch eager, FP32", in_fp32) for one in chosen]
        if tuned:
            plain = PEERS[0]
            entrants += [
                comparison.peer(plain, choice, f"{words}, FP32", in_fp32, f"{plain.name}, {choice}")
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
    rows = {one.name: comparison.row(one, found.series[one.name], found.series[_OURS]) for one in entrants}
    noise = comparison.noise(found.references, rounds)
    kind = "given our engine" if given_engine else "as documented"
    title = f"Peers {kind}, {senders} senders, {plan.source}, {rounds} rounds"
    report.show_all(f"{title}; limit: {how}; noise of equal code {noise:.1%}", rows)
    bounds = []
    for rival in rivals:
        for name, least in judged.items():
            faster = median(comparison.advantage(found.series[name], found.series[rival.name]))
            if given_engine:
                bounds.append(report.Bound(f"{rival.name} by {name}", 1 / faster, 1 + noise, at_least=False))
            else:
                bounds.append(report.Bound(f"{name} by {rival.name}", faster, min_faster or least))
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
