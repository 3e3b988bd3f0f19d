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
@click.option("--pairs", type=_OUT, help="Also write unlisted duplicates here, as a duplicates list for DIR.")
@click.option("--allow", multiple=True, metavar="CODE", help="Count findings of this code as notes. Repeat at will.")
@_WORKERS
def check(  # noqa: PLR0917 - click passes every option by name
    folder: Path, path: Path | None, as_json: bool, pairs: Path | None, allow: tuple[str, ...], workers: int | None
) -> None:
    """Look through DIR for everything that would make training or its figures wrong.

    Reads ISIC 2019, ISIC 2020 (official and Kaggle), HAM10000, test sets (labels.csv), splits.csv and every image:
    missing, damaged, duplicate and unlabelled files, labels that conflict with each other or with the official ones,
    patients, lesions and pictures on both sides of a division. Changes nothing in DIR. docs/data.md lists the codes.

    --pairs writes what shows the same picture and no list names; put the file into DIR, and training keeps each pair in
    one group.

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
    if pairs:
        click.echo(f"{output.write_pairs(report, pairs):,} pairs are in {pairs}")
    if report.errors:
        raise SystemExit(1)


@data.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--cache", required=True, type=_FOLDER, help="Where prepared images go, as for `train`: runs/cache.")
@click.option("--split", type=_FILE, help="A splits.csv, as for `train`; default: the one in DIR, if any.")
@click.option("--seed", default=0, show_default=True, help="Of the division without a splits.csv, as in the preset.")
@_WORKERS
def prepare(folder: Path, cache: Path, split: Path | None, seed: int, workers: int | None) -> None:
    """Decode, crop and resize all images of DIR once, so that training starts at once.

    What `dermserve train` does when it starts, with the same DIR, --cache, --split and seed: training finds the result,
    but not with --remove-artifacts or --limit, which take other pixels or other images. After an interruption the same
    command goes on where it was. 270 KB for each image.

    \b
    Examples:
      dermserve data prepare isic/ --cache runs/cache
      dermserve train --data isic/ --out runs/first --cache runs/cache
    """
    from rich.console import Console

    from training import datasets, pixels, splits, truth

    given = split or (folder / "splits.csv" if (folder / "splits.csv").exists() else None)
    found = datasets.read(folder)
    for note in found.notes:
        click.echo(note, err=True)
    parts = splits.split(found, given=given, seed=seed)
    left_out = len(found.records) - len(parts.train) - len(parts.validation)
    if left_out:
        click.echo(f"{left_out:,} labelled images are used for neither part of {parts.origin}", err=True)
    wanted = [("training and validation", [record.path for record in (*parts.train, *parts.validation)])]
    wanted += [(f"test set {test.name}", test.paths) for test in truth.find_test_sets(folder)]
    with _progress(Console(stderr=True)) as show:
        for what, paths in wanted:
            made = pixels.prepared(paths, cache, workers=workers, show=show)
            click.echo(f"{what}: {len(made):,} images in {made.filename}")  # type: ignore[attr-defined]


@data.command("split")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--folds", default=5, show_default=True, type=click.IntRange(2), help="How many folds to make.")
@click.option("--fold", default=0, show_default=True, type=click.IntRange(0), help="Which one validates, from 0.")
@click.option("--seed", default=0, show_default=True, help="Of the division.")
@click.option("--out", required=True, type=_OUT, help="The splits.csv to write.")
def split_(folder: Path, folds: int, fold: int, seed: int, out: Path) -> None:
    """Divide DIR into folds that share no patient, lesion or duplicate, and write one as a splits.csv for `train`.

    Folds are stratified by source and diagnosis. In the Kaggle layout of ISIC 2020 its tfrecords make the folds.

    \b
    Examples:
      dermserve data split isic/ --folds 5 --fold 0 --out fold-0.csv
      dermserve train --data isic/ --out runs/fold-0 --split fold-0.csv
    """
    from training import datasets, splits

    if fold >= folds:
        raise click.BadParameter(f"{fold} is none of 0…{folds - 1}.", param_hint="--fold")
    found = datasets.read(folder)
    for note in found.notes:
        click.echo(note, err=True)
    chosen = splits.folds(found, folds, seed=seed)[fold]
    splits.write(chosen, out)
    click.echo(f"{out}: {len(chosen.train):,} images to train, {len(chosen.validation):,} to validate")


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
