from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from training import batches
from training.augment import RandomJPEG, augmentation
from training.datasets import Record


def records() -> list[Record]:
    """Source A: 10 % melanoma of 400; source B: 50 % of 100; source C: 60 nevi and nothing else."""
    leaves = {"A": ["MEL"] * 40 + ["NV"] * 320 + ["DF"] * 40, "B": ["MEL"] * 50 + ["NV"] * 50, "C": ["NV"] * 60}
    return [
        Record(f"{source}{i}", Path(), leaf, "", source)
        for source, some in leaves.items()
        for i, leaf in enumerate(some)
    ]


def test_balancing_gives_every_source_the_same_share_of_melanoma_and_its_own_share_of_draws() -> None:
    some = records()
    weights = batches.balanced_weights(some, melanoma_share=0.3, leaf_exponent=0.5)
    assert weights.sum() == pytest.approx(1)
    for source, size in (("A", 400), ("B", 100)):
        mine = np.array([record.source == source for record in some])
        melanoma = np.array([record.leaf == "MEL" for record in some])
        assert weights[mine].sum() == pytest.approx(size / len(some))
        assert weights[mine & melanoma].sum() / weights[mine].sum() == pytest.approx(0.3)
    # 320 nevi and 40 dermatofibromas are drawn as √320 to √40.
    nevi, fibromas = (weights[[r.source == "A" and r.leaf == leaf for r in some]].sum() for leaf in ("NV", "DF"))
    assert nevi / fibromas == pytest.approx((320 / 40) ** 0.5)


def test_with_equal_weights_an_epoch_shows_every_image_once() -> None:
    sampler = batches.EpochSampler(np.full(101, 1 / 101), seed=3, epoch=0)
    assert sorted(index for _, _, index in sampler) == list(range(101))


def test_an_image_is_drawn_as_often_as_its_weight_says() -> None:
    weights = np.array([3.4, 0.6, 1.0, 1.0, 1.0, 1.0]) / 8
    drawn = Counter(i for epoch in range(200) for _, _, i in batches.EpochSampler(weights, 0, epoch))
    assert drawn[0] / 200 == pytest.approx(6 * 3.4 / 8, rel=0.03)
    one_epoch = Counter(i for _, _, i in batches.EpochSampler(weights, 0, 5))
    assert one_epoch[0] in (2, 3)


def test_starting_late_gives_the_rest_of_the_same_epoch() -> None:
    weights = batches.balanced_weights(records(), 0.3, 0.75)
    whole = list(batches.EpochSampler(weights, 7, 2))
    assert list(batches.EpochSampler(weights, 7, 2, start=100)) == whole[100:]
    assert list(batches.EpochSampler(weights, 7, 3)) != whole


def test_an_item_looks_the_same_whatever_was_drawn_before() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 80, 80, 3), np.uint8)
    images = batches.TrainingImages(pixels, np.arange(4), np.arange(4), augmentation("full", 64), seed=1)
    first, target = images[0, 5, 2]
    torch.rand(17)
    again, _ = images[0, 5, 2]
    assert target == 2
    assert first.shape == (3, 64, 64)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, images[0, 6, 2][0])
    assert not torch.equal(first, images[1, 5, 2][0])


def test_light_augmentation_reaches_all_eight_symmetries() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :8, :16] = 255  # an L would do as well: no symmetry of the square maps this corner onto itself
    transform = augmentation("light", 32)
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        out = transform(image)[0].float()
        quarters = [out[:16, :16].mean(), out[:16, 16:].mean(), out[16:, :16].mean(), out[16:, 16:].mean()]
        wide = out.amax(0).count_nonzero() > out.amax(1).count_nonzero()
        seen.add((int(np.argmax(quarters)), bool(wide)))
    assert len(seen) == 8


def test_recompression_changes_detail_but_not_the_picture() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([2 * x + y, 255 - 3 * y, x + y]).to(torch.uint8)
    noisy = (image.int() + torch.randint(0, 20, image.shape)).clamp(0, 255).to(torch.uint8)
    out = RandomJPEG((40, 40))(noisy)
    assert out.shape == noisy.shape
    assert out.dtype == torch.uint8
    assert not torch.equal(out, noisy)
    difference = (out.float() - noisy.float()).mean((1, 2))
    assert difference.abs().max() < 3
