"""Drawn lesion images: what tests, demos and load runs use where no photograph may be shown.

Everything is drawn from a seed and nothing from a photograph. A picture is built the way a dermatoscope sees skin:
two absorbers, melanin and blood, take light away (Beer and Lambert), scattering above deep pigment adds blue, and
hairs, gel bubbles, ruler ticks and the round view lie on top. The pictures look plausible and carry no diagnosis: a
prediction about them means nothing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from dermserve import drawing
from dermserve.errors import StartupError

QUALITY: Final = 90


def draw(seed: int) -> NDArray[np.uint8]:
    """Draw the lesion image that belongs to `seed` (≥ 0): uint8 [450, 600, 3], sRGB. The same seed, the same pixels."""
    rng = np.random.default_rng(seed)
    depth, angle = drawing.outline(rng)
    inside = drawing.step(depth, rng.uniform(0.05, 0.2))
    melanin, blood = drawing.skin(rng)
    melanin += drawing.pigment(rng, depth, angle, inside)
    blood += drawing.vascularity(rng, inside)
    veil = drawing.veil(rng, inside)

    light, lamp = drawing.illumination(rng)
    image = np.empty((drawing.HEIGHT, drawing.WIDTH, 3), np.float32)
    for channel in range(3):
        seen = np.exp(-drawing.MELANIN[channel] * melanin - drawing.BLOOD[channel] * blood)
        image[..., channel] = (seen + veil * (drawing.VEIL[channel] - seen)) * light * lamp[channel]
    drawing.lay_hairs(rng, image)
    if rng.random() < 0.3:
        drawing.lay_bubbles(rng, image)
    if rng.random() < 0.2:
        drawing.lay_ruler(rng, image)
    image = drawing.focus(rng, image)
    if rng.random() < 0.25:
        image *= drawing.round_view(rng)[..., None]
    image += np.float32(rng.uniform(0.003, 0.008)) * rng.standard_normal((drawing.HEIGHT, drawing.WIDTH, 1), np.float32)
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def jpeg(seed: int) -> bytes:
    """The image of `draw` as a JPEG file of quality 90; the same seed and library versions give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(draw(seed)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--count", default=12, show_default=True, type=click.IntRange(1, 100_000), help="Number of images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first image.")
def sample(directory: Path, count: int, seed: int) -> None:
    """Draw plausible lesion images into DIR: sample-000.jpg, sample-001.jpg, …

    They are drawn, not photographed, and carry no diagnosis: use them to try the server, not to judge the model.
    Image number i belongs to seed SEED + i, so a run can be repeated or continued.

    \b
    Examples:
      dermserve sample lesions/
      dermserve sample lesions/ --count 500 --seed 1000
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in track(range(count), "Drawing", disable=count < 50, transient=True):
            (directory / f"sample-{number:03d}.jpg").write_bytes(jpeg(seed + number))
    except OSError as error:
        raise StartupError(f"Cannot write to {directory}: {error.strerror}.") from error
    click.echo(f"{count} image{'s' if count > 1 else ''} drawn in {directory}")
