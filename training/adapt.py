"""Changes to trained weights that need no gradient: BatchNorm's statistics at 300 px, and the leaves' prior."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dermserve.image import SIDE
from dermserve.labels import LEAVES
from training import batches
from training.config import Config
from training.datasets import Record
from training.inference import to_input
from training.loop import Images
from training.pixels import ShowProgress, silent


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, images: Images, config: Config, device: torch.device, show: ShowProgress = silent
) -> int:
    """Replace BatchNorm's statistics by exact means over training images at 300 px; returns how many images.

    Activations at 300 px differ from those of a smaller, augmented training image, and the served network sees
    nothing but 300 px (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    rows = np.random.default_rng(batches.seed_for(config.seed, 4)).permutation(images.train)[: config.adapt_images]
    if not len(rows):
        return 0
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average, every batch alike
        layer.train()
    size = min(32, len(rows))
    starts = range(0, len(rows) - size + 1, size)
    for start in show(starts, f"Adapting to {SIDE} px", len(starts)):
        model(to_input(images.pixels[np.sort(rows[start : start + size])], device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    return len(starts) * size


def prior_shift(records: list[Record], weights: batches.Weights) -> NDArray[np.float64]:
    """How far balanced sampling moved the leaves' log-frequencies, float64 [9]: log(natural / drawn).

    By Bayes' rule a classifier trained under other class priors is corrected by adding this to its calibrated
    log-probabilities (Saerens et al. 2002). Leaves that were never drawn get 0.
    """
    natural = batches.leaf_distribution(records, batches.natural_weights(records))
    drawn = batches.leaf_distribution(records, weights)
    seen = (natural > 0) & (drawn > 0)
    shift = np.zeros(len(LEAVES))
    shift[seen] = np.log(natural[seen] / drawn[seen])
    return shift


@torch.no_grad()
def add_to_bias(model: nn.Module, values: NDArray[np.float64]) -> None:
    """Add `values` [9] to the last layer's bias, so that the exported graph needs no step of its own for them."""
    bias = model.get_classifier().bias  # type: ignore[operator]
    bias += torch.tensor(values, dtype=bias.dtype, device=bias.device)
