"""Which images a step sees, and how they look, as a pure function of seed, epoch and position.

No random state lives between steps, so a resumed run needs only the number of the next step to go on exactly as an
uninterrupted one, with any number of workers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from dermserve.labels import LEAVES
from training.datasets import Record
from training.pixels import Pixels

Weights = NDArray[np.float64]
"""Chance of each training image to be drawn, float64 [N], sum 1."""

_MELANOMA = LEAVES.index("MEL")


def seed_for(*numbers: int) -> int:
    """A 63-bit seed that differs for every tuple of non-negative integers (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def natural_weights(records: list[Record]) -> Weights:
    """Every image equally often: float64 [N], sum 1."""
    return np.full(len(records), 1 / len(records), np.float64)


def balanced_weights(
    records: list[Record], melanoma_share: float, leaf_exponent: float, source_exponent: float = 1.0
) -> Weights:
    """Draw weights of images, float64 [N], sum 1, with the same share of melanoma in every source.

    The sources differ in their share of melanoma (HAM10000 11 %, ISIC 2020's copy 52 %), and so does their look;
    evened out, recognising the source no longer lowers the loss. Sources are drawn in proportion to
    count ** `source_exponent`, and so are the other leaves of a source by `leaf_exponent`.
    """
    sources: dict[str, Counter[int]] = defaultdict(Counter)
    for record in records:
        sources[record.source][record.target] += 1
    sizes = {source: counts.total() ** source_exponent for source, counts in sources.items()}
    share: dict[tuple[str, int], float] = {}
    for source, counts in sources.items():
        size = sizes[source] / sum(sizes.values())
        others = {leaf: count**leaf_exponent for leaf, count in counts.items() if leaf != _MELANOMA}
        melanoma = 0.0 if _MELANOMA not in counts else melanoma_share if others else 1.0
        for leaf, count in counts.items():
            part = melanoma if leaf == _MELANOMA else (1 - melanoma) * others[leaf] / sum(others.values())
            share[source, leaf] = size * part / count
    return np.array([share[record.source, record.target] for record in records])


def leaf_distribution(records: list[Record], weights: Weights) -> NDArray[np.float64]:
    """Share of each leaf among the draws, float64 [9]."""
    return np.bincount([record.target for record in records], weights, minlength=len(LEAVES)).astype(np.float64)


class EpochSampler(Sampler[tuple[int, int, int]]):
    """The items of one epoch from a position on: (epoch, position, index of the image).

    Systematic sampling: an image with expected count c is drawn ⌊c⌋ or ⌈c⌉ times, not a Poisson number of times, so
    that with equal weights an epoch shows every image exactly once.
    """

    def __init__(self, weights: Weights, seed: int, epoch: int, start: int = 0) -> None:
        rng = np.random.default_rng(seed_for(seed, 1, epoch))
        count = len(weights)
        shuffled = rng.permutation(count)  # neighbours in the file must not exclude each other
        marks = (np.arange(count) + rng.random()) / count
        ends = np.cumsum(weights[shuffled])
        drawn = shuffled[np.minimum(np.searchsorted(ends / ends[-1], marks, side="right"), count - 1)]
        self.order: NDArray[np.int64] = rng.permutation(drawn)
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for position in range(self.start, len(self.order)):
            yield self.epoch, position, int(self.order[position])

    def __len__(self) -> int:
        return len(self.order) - self.start


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images for the items of `EpochSampler`: (uint8 [3, side, side], index of the leaf).

    Image i of the training set is row `rows[i]` of `pixels`, and shows the leaf `targets[i]`.
    """

    def __init__(
        self, pixels: Pixels, rows: NDArray[np.int64], targets: NDArray[np.int64], transform: nn.Module, seed: int
    ) -> None:
        self.pixels, self.rows, self.targets = pixels, rows, targets
        self.transform, self.seed = transform, seed

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Tensor, int]:
        epoch, position, index = item
        torch.default_generator.manual_seed(seed_for(self.seed, 2, epoch, position))
        image = torch.from_numpy(np.array(self.pixels[self.rows[index]])).permute(2, 0, 1)
        return self.transform(image), int(self.targets[index])
