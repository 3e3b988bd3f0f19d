"""The command `dermserve bench pages`."""

from __future__ import annotations

import itertools

import click

from benchmarks import options, report

_HISTORY = 60


@click.command()
@click.option("--visits", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Of each page.")
@click.option("--max-kb", default=100.0, show_default=True, help="Most that the upload page may weigh in all.")
@click.option("--max-paint-ms", default=1000.0, show_default=True, help="Latest first paint of any page, p95.")
@options.common
def pages(*, visits: int, max_kb: float, max_paint_ms: float, plan: options.Plan) -> None:
    """Milliseconds and bytes of every web page, for somebody with sixty results.

    Bytes are as sent before compression; with everything that the page loads, and nothing from a cache. Where Chromium
    is installed, the first paint of every page is measured in it, too.

    \b
    Example:
      dermserve bench pages --visits 300
    """
    from benchmarks import pages
    from benchmarks.images import endless
    from benchmarks.stack import running

    on = report.machine()
    pictures = list(itertools.islice(endless(plan.files), _HISTORY))
    visits = 5 if plan.quick else visits
    with running() as stack:
        found = pages.measure(stack, pictures, count=visits)
    rows = {name: visit.as_row() for name, visit in found.items()}
    report.show_all(f"Pages, {visits} visits of each", rows)
    bounds = [report.Bound("kB of the upload page in all", found["upload"].with_static / 1e3, max_kb, at_least=False)]
    painted = [report.percentiles(visit.first_paint_ms)["p95"] for visit in found.values() if visit.first_paint_ms]
    if painted:
        bounds.append(report.Bound("latest first paint of a page, p95 ms", max(painted), max_paint_ms, at_least=False))
    report.conclude("pages", {**plan.as_rows(), "visits": visits, "rows": rows}, bounds, on, plan.out)
