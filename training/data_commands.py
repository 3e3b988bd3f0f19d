"""The commands `dermserve data check`, `prepare` and `split`. Heavy libraries are imported when a command runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from training.pixels import ShowProgress

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)
_WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Threads that read images; default: by the processors."
)


@click.group()
def data() -> None:
    """Check, divide and prepare folders of ISIC images before training.

    \b
    Examples:
      dermserve data check isic/
      dermserve data split isic/ --folds 5 --fold 0 --out splits.csv
      dermserve data prepare isic/ --cache runs/cache
    """


@data.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--report", "path", type=_OUT, help="Where the report goes; default: data-check.md (or .json) here.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON instead of Markdown.")
@click.option("--allow", multiple=True, metavar="CODE", help="Count findings of this code as notes. Repeat at will.")
@_WORKERS
def check(folder: Path, path: Path | None, as_json: bool, allow: tuple[str, ...], workers: int | None) -> None:
    """Look through DIR for everything that would make training or its figures wrong.

    Reads ISIC 2019, ISIC 2020 (official and Kaggle), HAM10000, test sets (labels.csv), splits.csv and every image:
    missing, damaged, duplicate and unlabelled files, labels that conflict with each other or with the official ones,
    patients, lesions and pictures on both sides of a division. Changes nothing in DIR. docs/data.md lists the codes.

    Exit status: 0 without errors (warnings and notes are allowed), 1 with errors, 2 for a wrong call.

    \b
    Examples:
      dermserve data check isic/
      dermserve data check isic/ --json --report check.json
      dermserve data check isic/ --allow label_not_official   # after own corrections of labels
    """
    from rich.console import Console

    from training.check import output
    from training.check.findings import CODES
    from training.check.run import check as run

    unknown = sorted(set(allow) - set(CODES))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)} is no code of a finding.", param_hint="--allow")
    with _progress(Console(stderr=True)) as show:
        report = run(folder, allowed=allow, workers=workers, show=show)
    target = path or Path("data-check.json" if as_json else "data-check.md")
    output.write(report, target, as_json=as_json)
    Console().print(output.table(report))
    click.echo(f"{report.errors:,} errors; every finding is in {target}")
    if report.errors:
        raise SystemExit(1)


@contextmanager
def _progress(console: Console) -> Iterator[ShowProgress]:
    """A bar on a terminal, a line in a file."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:

        def show(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
            if not console.is_terminal:
                console.print(f"{label}: {total}", markup=False, highlight=False)
            yield from bars.track(items, total=total, description=label)

        yield show
