"""Distances to training images: what is far, what is near, and what the card says about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dermserve import nonlesion, sample
from dermserve.image import fit as fitted
from training import ood
from training.artifacts import draw
from training.model import Novelty, create_model, statistics

CPU = torch.device("cpu")
TRAIN, HELD = np.arange(60), np.arange(60, 80)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(architecture="efficientnet_b0").eval()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([fitted(sample.draw(seed)).pixels for seed in range(80)])


@pytest.fixture(scope="module")
def found(network: nn.Module, pixels: np.ndarray) -> ood.Fitted:
    return ood.fit(network, pixels, TRAIN, CPU)


def share(network: nn.Module, found: ood.Fitted, some: np.ndarray) -> float:
    return float((ood.distances(network, found.parameters, some, np.arange(len(some)), CPU) > found.threshold).mean())


def test_held_out_images_are_near_and_generated_ones_are_far(
    network: nn.Module, pixels: np.ndarray, found: ood.Fitted
) -> None:
    # Sixty images are few for 25 statistics; a real fit has thousands and is held to 2 % by its card.
    assert share(network, found, pixels[HELD]) <= 0.3
    far = np.stack([fitted(nonlesion.draw(kind, 0)).pixels for kind in nonlesion.KINDS])
    assert share(network, found, far) >= 0.9


@pytest.mark.parametrize("kind", ["blank", "noise", "text", "blur"])
def test_kinds_that_must_never_be_assessed(network: nn.Module, found: ood.Fitted, kind: str) -> None:
    far = np.stack([fitted(nonlesion.draw(kind, seed)).pixels for seed in range(6)])
    assert share(network, found, far) == 1


def test_a_drawn_artefact_leaves_most_images_near(network: nn.Module, pixels: np.ndarray, found: ood.Fitted) -> None:
    rng = np.random.default_rng(1)
    marked = np.stack(
        [
            draw(kind, one, rng)
            for one, kind in zip(pixels[HELD], 4 * ["hair", "ink", "ruler", "patch", "bubbles"], strict=True)
        ]
    )
    assert share(network, found, marked) <= 0.4


def test_the_distance_is_that_of_its_parts_and_finite_for_anything(found: ood.Fitted) -> None:
    novelty = Novelty(found.parameters)
    middle = found.parameters["embedding_mean"][None]
    for level in (0.0, 128.0, 255.0):
        away = novelty(torch.full((1, 3, 300, 300), level), middle)
        assert away.shape == (1, 1)
        assert torch.isfinite(away).all()
    image = torch.from_numpy(fitted(sample.draw(3)).pixels).permute(2, 0, 1)[None].float()
    assert novelty(image, middle + 1e3) > novelty(image, middle), "the embedding counts, too"


def test_full_size_and_small_copies_of_a_picture_are_alike() -> None:
    """What the public copies lost to reduction must not decide."""
    from PIL import Image

    large = sample.draw(5)
    small = np.asarray(Image.fromarray(large).resize((200, 150), Image.Resampling.BILINEAR))
    both = [
        statistics(torch.from_numpy(fitted(one).pixels.copy()).permute(2, 0, 1)[None].float()) for one in (large, small)
    ]
    assert (both[0] - both[1]).abs().max() < 1.5


def test_the_card_counts_by_source_and_kind(network: nn.Module, pixels: np.ndarray, found: ood.Fitted) -> None:
    sources = ["HAM10000"] * 10 + ["ISIC2020"] * 10
    card = ood.account(network, found, pixels, HELD, sources=sources, device=CPU)
    assert card["ood"]["measured"]
    assert card["ood"]["thresholds"] == {"ood": found.threshold}
    shares = card["ood"]["abstained"]
    assert set(shares) == {"val", "val/HAM10000", "val/ISIC2020"}
    assert shares["val"] == pytest.approx((shares["val/HAM10000"] + shares["val/ISIC2020"]) / 2, abs=1e-3)
    assert set(card["ood"]["generated"]) == {"all", *nonlesion.KINDS}
    assert set(card["quality"]["flagged"]) == set(card["quality"]["thresholds"])
