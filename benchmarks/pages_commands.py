"""The command `dermserve bench pages`."""

from __future__ import annotations

import itertools

import click

from benchmarks import options, report

_HISTORY = 60


@click.command()
@click.option("--visits", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Of each page.")
@click.option("--max-kb", default=100.0, show_default=True, help="Most that the upload page may weigh in all.")
@options.common
def pages(*, visits: int, max_kb: float, plan: options.Plan) -> None:
    """Milliseconds and bytes of every web page, for somebody with sixty results.

    Bytes are as sent before compression; with everything that the page loads, and nothing from a cache.

    \b
    Example:
      dermserve bench pages --visits 300
    """
    from benchmarks import pages
    from benchmarks.images import endless
    from benchmarks.stack import running

    on = report.machine()
    pictures = list(itertools.islice(endless(plan.files), _HISTORY))
    with running() as stack:
        found = pages.measure(stack, pictures, count=5 if plan.quick else visits)
    rows = {name: visit.as_row() for name, visit in found.items()}
    report.show_all(f"Pages, {visits} visits of each", rows)
    bounds = [report.Bound("kB of the upload page in all", found["upload"].with_static / 1e3, max_kb, at_least=False)]
    report.conclude("pages", {**plan.as_rows(), "visits": visits, "rows": rows}, bounds, on, plan.out)
