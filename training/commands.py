"""`dermserve train` and `dermserve evaluate`. Heavy libraries are imported when a command runs, not for its help."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from training.scores import Joined, Report

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--data", required=True, type=_FOLDER, help="Folder that holds ISIC 2019 and/or ISIC 2020.")
@click.option("--out", required=True, type=_FOLDER, help="Folder of this run, for example runs/first.")
@click.option("--preset", default="recommended", show_default=True, help="recommended, seed, cpu or quick.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="One stage of so many epochs.")
@click.option("--resolution", type=click.IntRange(32, 300), help="One stage at this side in pixels.")
@click.option("--limit", type=click.IntRange(1), help="Train on so many images only (no test set is scored).")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Fit the schedule into this time.")
@click.option("--split", type=_FILE, help="A splits.csv (image,group_id,split); default: the one in DATA, if any.")
@click.option("--cache", type=_FOLDER, help="Folder of prepared images; default: `cache` beside the run's folder.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a key of the preset.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with the configuration it was started with.")
def train(  # noqa: PLR0917 - click passes every option by name
    data: Path,
    out: Path,
    preset: str,
    epochs: float | None,
    resolution: int | None,
    limit: int | None,
    max_minutes: float | None,
    split: Path | None,
    cache: Path | None,
    assignments: tuple[str, ...],
    resume: bool,
) -> None:
    """Train EfficientNet-B3 on ISIC images; writes final.pt and card.json for `dermserve export`.

    After an interruption, the same command with --resume goes on exactly where the last checkpoint was written.

    \b
    Examples:
      dermserve train --data isic/ --out runs/first
      dermserve train --data isic/ --out runs/quick --preset quick --limit 2000
      dermserve train --data isic/ --out runs/cpu --preset cpu --max-minutes 90
      dermserve train --data isic/ --out runs/own --set lr=1e-4 --set batch_size=32
    """
    from rich.console import Console

    from training import run, watch
    from training.config import resolve

    request = run.Request(data, out, cache or out.parent / "cache", split, limit, resume, max_minutes)
    if resume:
        if assignments or epochs is not None or resolution is not None:
            raise click.UsageError(
                "--resume goes on with the saved configuration; leave out --set, --epochs, --resolution."
            )
        config = run.saved_config(out)
    else:
        config = resolve(preset, assignments, epochs=epochs, resolution=resolution)
    with ExitStack() as open_:
        terminal = open_.enter_context(watch.Terminal(config, Console(stderr=True)))
        watchers: list[watch.Terminal | watch.WeightsAndBiases] = [terminal]
        if config.wandb != "disabled":
            out.mkdir(parents=True, exist_ok=True)
            watchers.append(open_.enter_context(watch.WeightsAndBiases(config, out)))
        final = run.train(request, config, watch.Both(*watchers), say=terminal.say, show=terminal.show)
    click.echo(f"{final} and {final.with_name('card.json')} are written; next: dermserve export --help")


@click.command()
@click.argument("predictions", type=_FILE)
@click.argument("labels", type=_FILE)
@click.option("--card", type=_FILE, help="Model card with the operating points; default: the served model's.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
@click.option("--partial", is_flag=True, help="Leave out images that only one of the files has, instead of refusing.")
@click.option("--bootstrap", default=1000, show_default=True, type=click.IntRange(10), help="Resamples per interval.")
def evaluate(  # noqa: PLR0917 - click passes every option by name
    predictions: Path, labels: Path, card: Path | None, json_path: Path | None, partial: bool, bootstrap: int
) -> None:
    """Measure PREDICTIONS (of `dermserve predict`) against LABELS, melanoma or not.

    LABELS has the columns image,melanoma, or is the ground truth of ISIC 2019 or train.csv of ISIC 2020. Files are
    matched by image id. Intervals are 95 %, by bootstrap over lesions or patients where the labels name them.

    \b
    Examples:
      dermserve evaluate out.csv labels.csv
      dermserve evaluate out.csv ISIC_2019_Training_GroundTruth.csv --partial --json figures.json
    """
    from rich.console import Console

    from dermserve.model_card import CARD_PATH
    from dermserve.settings import Settings
    from training import scores

    if card is None:
        served = Settings().model_repository / CARD_PATH
        card = served if served.exists() else None
    points = scores.card_points(card) if card else {}
    joined = scores.join(predictions, labels, partial=partial)
    found = scores.report(joined, points, labels.name, bootstrap=bootstrap)
    console = Console()
    console.print(_table(found, joined))
    if joined.left_out:
        console.print(f"Left out, in one of the files only: {joined.left_out} images.", highlight=False)
    if not points:
        console.print("No model card, hence no operating points (--card).", highlight=False)
    if json_path:
        json_path.write_text(found.to_json())


def _table(found: Report, joined: Joined) -> Table:
    from rich.table import Table

    count, positives = len(joined.truth), int(joined.truth.sum())
    table = Table(title=f"{count} images, {positives} melanomas ({positives / count:.1%})", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    titles = {
        "roc_auc": "ROC-AUC",
        "average_precision": "average precision",
        "specificity_at_95_sensitivity": "specificity at 95 % sensitivity",
    }
    rows = [(titles[name], figure) for name, figure in found.metrics.items()]
    for name, point in found.points.items():
        rows.append((f"{name} (≥ {point.threshold:.4f}): sensitivity", point.sensitivity))
        rows.append((f"{name} (≥ {point.threshold:.4f}): specificity", point.specificity))
    for title, figure in rows:
        table.add_row(title, f"{figure.value:.4f}", f"{figure.low:.4f} – {figure.high:.4f}")
    return table
