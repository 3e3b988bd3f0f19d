"""What each random change does to an image; that it cannot depend on the label; that a seed decides it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import augment, batches
from training.artifacts import RandomArtifacts
from training.augment import Chances, RandomJPEG, RandomNoise, RandomTranspose, augmentation

EVERYTHING = Chances(artifacts=1, noise=1, cutout=1)
ADDED_LATER = {"RandomNoise", "RandomErasing"}
OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "transpose": RandomTranspose,
    "jpeg": lambda: RandomJPEG((40, 95)),
    "noise": lambda: RandomNoise(1),
    "artifacts": lambda: RandomArtifacts(1),
    "none": lambda: augmentation("none", 48),
    "light": lambda: augmentation("light", 48),
    "full": lambda: augmentation("full", 48),
    "everything": lambda: augmentation("full", 48, EVERYTHING),
}


def picture(height: int = 48, width: int = 48) -> Tensor:
    """A dark, noisy blob on skin, uint8 [3, H, W]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    blob = torch.exp(-4 * (x**2 + 2 * y**2))
    skin = torch.tensor([220.0, 180.0, 160.0]).view(3, 1, 1)
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(3))
    return (skin * (1 - 0.6 * blob) + 3 * noise).clamp(0, 255).to(torch.uint8)


def applied(transform: nn.Module, image: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    out: Tensor = transform(image)
    return out


@pytest.mark.parametrize("name", OPERATIONS)
def test_shape_and_type_stay_and_the_seed_decides(name: str) -> None:
    transform, image = OPERATIONS[name](), picture()
    before = image.clone()
    outs = [applied(transform, image, seed) for seed in range(6)]
    assert {(out.dtype, tuple(out.shape)) for out in outs} == {(torch.uint8, (3, 48, 48))}
    assert torch.equal(image, before), "the transform wrote into its input"
    assert torch.equal(applied(transform, image, 3), outs[3])
    if name != "none":
        assert not all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_result_does_not_depend_on_the_label(name: str) -> None:
    pixels = picture().permute(1, 2, 0).numpy()[None]
    shown = []
    for leaf in (0, 1):
        images = batches.TrainingImages(pixels, np.arange(1), np.array([leaf]), OPERATIONS[name](), seed=4)
        shown.append([images[0, position, 0][0] for position in range(4)])
    assert all(torch.equal(first, second) for first, second in zip(*shown, strict=True))


@pytest.mark.parametrize("side", [32, 96, 300])
def test_every_source_shape_becomes_the_working_square(side: int) -> None:
    for height, width in ((300, 300), (45, 60)):
        out = applied(augmentation("full", side, EVERYTHING), picture(height, width), 0)
        assert tuple(out.shape) == (3, side, side)


def test_the_lesion_stays_recognisable() -> None:
    """Over many draws the middle stays darker than the rim: no setting paints over or loses the lesion as a rule."""
    transform, image = augmentation("full", 48, Chances(artifacts=0.35, noise=0.3, cutout=0.5)), picture()
    darker = 0
    for seed in range(60):
        out = applied(transform, image, seed).float().mean(0)
        rim = torch.cat([out[:6].flatten(), out[-6:].flatten()])
        darker += bool(out[16:32, 16:32].mean() < rim.median())
    assert darker >= 48


def test_noise_grows_with_the_light_and_has_no_colour_cast() -> None:
    dark, bright = (torch.full((3, 80, 80), level, dtype=torch.uint8) for level in (30, 200))
    spread = []
    for image in (dark, bright):
        change = torch.stack([applied(RandomNoise(1), image, seed).float() - image for seed in range(30)])
        spread.append(float(change.std()))
        assert abs(float(change.mean())) < 0.2
    assert 2 < spread[0] < spread[1] < 13


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_chance_is_kept(p: float) -> None:
    image = picture()
    for transform in (RandomNoise(p), RandomArtifacts(p)):
        changed = sum(not torch.equal(applied(transform, image, seed), image) for seed in range(200))
        assert changed == pytest.approx(200 * p, abs=25 if 0 < p < 1 else 4)


def test_cutout_replaces_one_rectangle_by_the_mean_colour_and_nothing_else() -> None:
    image = picture(300, 300)
    whole, cut = (augmentation("full", 128, Chances(cutout=chance)) for chance in (0.0, 1.0))
    shares = []
    for seed in range(20):
        first, second = applied(whole, image, seed), applied(cut, image, seed)
        rows, columns = (first != second).any(0).nonzero(as_tuple=True)
        box = second[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        mean = torch.tensor(augment._MEAN_LEVELS, dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal(box, mean.expand_as(box))
        shares.append(box[0].numel() / 128**2)
    assert 0.015 < min(shares) < max(shares) < 0.15


def test_what_is_switched_off_draws_nothing() -> None:
    """A run of a configuration from before an operation existed goes on with the very same images."""
    image = picture()
    plain = [layer for layer in augmentation("full", 48, EVERYTHING) if type(layer).__name__ not in ADDED_LATER]
    torch.manual_seed(0)
    expected = nn.Sequential(*plain)(image)
    state = torch.get_rng_state()
    assert torch.equal(applied(augmentation("full", 48, Chances(artifacts=1)), image, 0), expected)
    assert torch.equal(torch.get_rng_state(), state)
