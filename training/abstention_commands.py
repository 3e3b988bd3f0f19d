"""The command `dermserve abstention`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also a folder of real dermoscopy images, subfolders included.",
)
@click.option("--count", default=12, show_default=True, type=click.IntRange(1), help="Generated images of each kind.")
@click.option("--first-seed", default=1000, show_default=True, type=click.IntRange(0), help="Where their seeds begin.")
@click.option("--url", help="host:port of Triton's gRPC; default: the settings' (DERMSERVE_TRITON_URL).")
def abstention(images: Path | None, count: int, first_seed: int, url: str | None) -> None:
    """Ask the served model on which images it would not answer, and which flags it raises.

    Real images should be answered, generated ones that are no dermoscopy photograph should not. Drawn lesions are
    neither; demonstrations need most of them to be answered. Exit status 1: more than 2 % of the real images are
    abstained on, or fewer than 95 % of the generated ones.

    \b
    Examples:
      dermserve abstention --images ../shared/data/isic2017-test/images
      dermserve abstention --count 50 --url gpu-host:8001
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from dermserve import nonlesion, sample
    from dermserve.client import TritonClient
    from dermserve.errors import StartupError
    from dermserve.labels import QUALITY_FLAGS
    from dermserve.model_card import ModelCard
    from dermserve.settings import Settings

    settings = Settings()
    card = ModelCard.read(settings.model_repository)
    if not card.ood.measured:
        raise StartupError("The served model's card says that `ood` is not measured: finish and export the run again.")
    files = (
        [] if images is None else sorted(f for f in images.rglob("*") if f.suffix.lower() in {".jpg", ".jpeg", ".png"})
    )
    if images and not files:
        raise StartupError(f"{images} holds no JPEG or PNG image.")
    seeds = range(first_seed, first_seed + count)
    groups: dict[str, tuple[int, Iterable[bytes]]] = {
        kind: (count, (_jpeg(nonlesion.draw(kind, seed)) for seed in seeds)) for kind in nonlesion.KINDS
    }
    groups["drawn lesions"] = (count, (sample.jpeg(seed) for seed in seeds))
    if images:
        groups = {f"real: {images.name}": (len(files), (file.read_bytes() for file in files))} | groups
    client = TritonClient([url] if url else settings.triton_urls, timeout_s=settings.inference_timeout_s)
    table = Table("images", "readable", "abstained", *QUALITY_FLAGS)
    abstained: dict[str, float] = {}
    for name, (number, encoded) in groups.items():
        some = track(encoded, name, total=number, console=Console(stderr=True), transient=True)
        shares = _shares(client, card, some)
        abstained[name] = shares[1]
        table.add_row(name, f"{shares[0]:.0f} of {number}", *(f"{share:.1%}" for share in shares[1:]))
    Console().print(table)
    caught = sum(abstained[kind] for kind in nonlesion.KINDS) / len(nonlesion.KINDS)
    click.echo(f"generated, all kinds: {caught:.1%} abstained on; threshold {card.ood.thresholds['ood']:.3f}")
    if caught < 0.95 or (images and abstained[f"real: {images.name}"] > 0.02):
        raise SystemExit(1)


def _shares(client: Any, card: Any, encoded: Iterable[bytes]) -> list[float]:
    """How many images were readable, which share of them is abstained on, and which share has each flag."""
    import numpy as np

    from dermserve.errors import ImageError, StartupError
    from dermserve.labels import QUALITY_FLAGS

    thresholds = np.array([card.quality.thresholds.get(flag, 1.1) for flag in QUALITY_FLAGS])
    found = []
    for data in encoded:
        try:
            answer = client.infer([data], ["ood", "quality"], bulk=True)
        except ImageError:
            continue  # refused before anything could abstain; the number of readable ones says how many
        away = answer["ood"][0, 0] > card.ood.thresholds["ood"]
        found.append([away, *(answer["quality"][0] >= thresholds)])
    if not found:
        raise StartupError("None of the images is readable.")
    return [float(len(found)), *np.mean(found, axis=0).tolist()]


def _jpeg(pixels: Any) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
