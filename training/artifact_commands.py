"""The command `dermserve artifacts`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from dermserve.errors import StartupError

_RUN = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--data", type=_RUN, required=True, help="Folder with ISIC 2019 and/or ISIC 2020, as for training.")
@click.option("--run", "runs", type=_RUN, multiple=True, required=True, help="A finished run; give it several times.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the page (Markdown, plot, JSON)."
)
@click.option("--count", default=400, show_default=True, type=click.IntRange(20), help="Validation images to draw on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Picks the images and the drawings.")
def artifacts(data: Path, runs: tuple[Path, ...], out: Path | None, count: int, seed: int) -> None:
    """Measure how far drawn hair, ink, rulers, patches, dark corners and bubbles move the melanoma probability.

    Each artefact is drawn on images that are validation images of every RUN, whatever their diagnosis, and scored by
    each with and without removal: ROC-AUC, drift of the probability and changed referrals against the same images
    without it. Give one run trained with `artifacts` in its configuration and one with `--set artifacts=0` to see what
    augmentation does.

    \b
    Examples:
      dermserve artifacts --data ../shared/data --run runs/b3 --count 200
      dermserve artifacts --data isic/ --run runs/with --run runs/without --out docs/artifacts.md
    """
    from rich.console import Console

    from training import ablation, ablation_report
    from training.inference import keep_memory

    keep_memory()
    console = Console(stderr=True)
    names = Counter(run.resolve().name for run in runs)
    if len(names) < len(runs):
        raise StartupError(
            f"Several runs are called {names.most_common(1)[0][0]}: rows and plot tell them apart by name."
        )
    loaded = [ablation.load(run) for run in runs]
    found = ablation.validation(data, loaded, count, seed)
    with ablation_report.progress(console) as show:
        measured = ablation.measure(loaded, found, seed=seed, show=show)
    Console().print(ablation_report.table(measured.rows))
    for sentence in (*ablation_report.conclusions(measured, loaded), ablation_report.defaults(measured, loaded)):
        click.echo(sentence)
    if out:
        ablation_report.write(out, measured, loaded, found, seed)
        click.echo(f"{out} is written")
