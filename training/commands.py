"""`dermserve train` and `dermserve evaluate`. Heavy libraries are imported when a command runs, not for its help."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from training.scores import TrainingImages

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


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
@click.option("--remove-artifacts", is_flag=True, help="Paint hair over in every image, later in served ones, too.")
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
    remove_artifacts: bool,
    resume: bool,
) -> None:
    """Train EfficientNet-B3 on ISIC images; writes final.pt and card.json for `dermserve export`.

    After an interruption, the same command with --resume goes on exactly where the last checkpoint was written.

    \b
    Examples:
      dermserve train --data isic/ --out runs/first
      dermserve train --data isic/ --out runs/quick --preset quick --limit 2000
      dermserve train --data isic/ --out runs/cpu --preset cpu --max-minutes 90   (after dermserve inherit)
      dermserve train --data isic/ --out runs/own --set lr=1e-4 --set batch_size=32
    """
    from rich.console import Console

    from training import run, watch
    from training.config import resolve

    request = run.Request(data, out, cache or out.parent / "cache", split, limit, resume, max_minutes)
    if resume:
        if assignments or remove_artifacts or epochs is not None or resolution is not None:
            raise click.UsageError(
                "--resume goes on with the saved configuration; leave out --set, --epochs, --resolution, "
                "--remove-artifacts."
            )
        config = run.saved_config(out)
    else:
        config = resolve(
            preset, assignments, epochs=epochs, resolution=resolution, remove_artifacts=remove_artifacts or None
        )
    with ExitStack() as open_:
        terminal = open_.enter_context(watch.Terminal(config, Console(stderr=True)))
        watchers: list[watch.Terminal | watch.WeightsAndBiases] = [terminal]
        if config.wandb != "disabled":
            watchers.append(open_.enter_context(watch.WeightsAndBiases(config, out)))
        final = run.train(request, config, watch.Both(*watchers), say=terminal.say, show=terminal.show)
    click.echo(f"{final} and {final.with_name('card.json')} are written; next: dermserve export --help")


@click.command()
@click.argument("predictions", type=_FILE, required=False)
@click.argument("labels", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--card", type=_FILE, help="Model card with the operating points; default: the served model's.")
@click.option("--json", "json_path", type=_NEW_FILE, help="Also write the figures here.")
@click.option("--plots", type=_FOLDER, help="Also draw ROC, precision-recall, reliability and scores into this folder.")
@click.option("--partial", is_flag=True, help="Leave out images that only one of the files has, instead of refusing.")
@click.option(
    "--training-images",
    type=click.Choice(["refuse", "leave-out", "allow"]),
    default="refuse",
    show_default=True,
    help="What becomes of images that the card says were trained on.",
)
@click.option("--bootstrap", default=1000, show_default=True, type=click.IntRange(10), help="Resamples per interval.")
@click.option(
    "--write-card",
    "data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DATA",
    help="Instead of files: score DATA's validation and test images with the running server, and write the figures "
    "into its model card and the page docs/model-card.md with its plots.",
)
@click.option(
    "--url", help="With --write-card: Triton's gRPC, host:port; default: DERMSERVE_TRITON_URL or the local one."
)
@click.option(
    "--page", type=_NEW_FILE, help="With --write-card: the page; default: this checkout's docs/model-card.md."
)
@click.option("--keep", type=_FOLDER, help="With --write-card: also write what was scored, one CSV file per data set.")
def evaluate(  # noqa: PLR0917 - click passes every option by name
    predictions: Path | None,
    labels: Path | None,
    card: Path | None,
    json_path: Path | None,
    plots: Path | None,
    partial: bool,
    training_images: TrainingImages,
    bootstrap: int,
    data: Path | None,
    url: str | None,
    page: Path | None,
    keep: Path | None,
) -> None:
    """Measure PREDICTIONS (of `dermserve predict`) against LABELS, melanoma or not.

    LABELS has the columns image,melanoma, or is the ground truth of ISIC 2019 or train.csv of ISIC 2020, or a folder
    that holds such sets with their images. Files are matched by image id. Intervals are 95 %, by bootstrap over lesions
    or patients where the labels name them. Sex, age and site are taken from the labels or ISIC 2019's metadata beside
    them. Images that the weights were trained on are refused.

    \b
    Examples:
      dermserve evaluate out.csv labels.csv
      dermserve evaluate out.csv ISIC_2019_Training_GroundTruth.csv --partial --json figures.json
      dermserve evaluate out.csv isic/ --training-images leave-out --plots plots/
      dermserve evaluate --write-card isic/
    """
    from rich.console import Console

    from training import scores
    from training.report import console as report_console
    from training.report.examine import Examiner

    console = Console()
    if data is not None:
        if predictions or labels or card or json_path or plots:
            raise click.UsageError(
                "--write-card scores by itself: leave out PREDICTIONS, LABELS, --card, --json, --plots."
            )
        report_console.write_card(data, url=url, page=page, keep=keep, bootstrap=bootstrap, console=console)
        return
    if predictions is None or labels is None:
        raise click.UsageError("Give PREDICTIONS and LABELS, or --write-card DATA.")
    card = card or report_console.served_card()
    points = scores.card_points(card) if card else {}
    joined = scores.join(
        predictions,
        labels,
        partial=partial,
        seen=scores.card_seen(card) if card else None,
        training_images=training_images,
    )
    thresholds = {name: point.threshold for name, point in points.items()}
    found = Examiner(thresholds, joined.subjects, bootstrap).examine(joined.images)
    report_console.show(console, found, joined, has_card=card is not None)
    if plots:
        from training.report.plots import draw_all

        for path in draw_all(joined.images, found[joined.images.name], plots).values():
            console.print(f"{path} is written", highlight=False, soft_wrap=True)
    if json_path:
        json_path.write_text(scores.to_json(found, joined))
