"""Random changes to a training image, of torchvision v2 and independent of the label.

They take away what tells a *source* instead of a lesion: aspect ratio (some public copies are square whatever the
original was), sharpness, noise, JPEG quality, colour cast and orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import simplejpeg
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from training.artifacts import RandomArtifacts
from training.model import MEAN

Strength = Literal["none", "light", "full"]


class RandomTranspose(nn.Module):
    """Swap rows and columns with probability `p`; with both flips it gives all eight symmetries of the square."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 [3, H, W] → [3, W, H] or unchanged."""
        return image.transpose(1, 2).contiguous() if torch.rand(()) < self.p else image


class RandomJPEG(nn.Module):
    """Compress and decompress with a quality drawn evenly from `quality` (torchvision's own codec is on its way out)."""

    def __init__(self, quality: tuple[int, int]) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 [3, H, W] → the same shape, with the blocks and the colour subsampling (4:2:0) of a JPEG."""
        low, high = self.quality
        quality = int(torch.randint(low, high + 1, ()))
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        data = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
        return torch.from_numpy(simplejpeg.decode_jpeg(data, colorspace="RGB")).permute(2, 0, 1)


class RandomNoise(nn.Module):
    """With probability `p` add a camera's noise: a part that grows with the light (shot) and one that does not (read).

    The standard deviation of the sum is up to about 12 levels of 255 in bright skin.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 [3, H, W] → the same shape."""
        if torch.rand(()) >= self.p:
            return image
        read, shot = torch.rand(2) * torch.tensor((6.0, 0.7))
        light = image.float()
        noise = torch.randn(image.shape) * torch.sqrt(read**2 + shot**2 * light)
        return light.add(noise).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Chances:
    """Probabilities, 0…1, of drawn artefacts, sensor noise and an erased rectangle."""

    artifacts: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0


_NOTHING = Chances()
_MEAN_LEVELS = tuple(round(255 * value) for value in MEAN)


def augmentation(strength: Strength, side: int, chances: Chances = _NOTHING) -> nn.Module:
    """The transform for training images: uint8 [3, H, W] → uint8 [3, side, side]. It draws from torch's global RNG.

    `light`: symmetries and a mild crop, for the `seed` preset. `full`: also zoom, aspect ratio, rotation, shear,
    colour, blur, re-compression, and what `chances` asks for. Crops keep at least 45 % of the area, so the lesion
    stays in view, and an erased rectangle covers 2 to 14 % (the ISIC 2020 winners': 14 %).
    """
    smooth = InterpolationMode.BILINEAR
    symmetries = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), RandomTranspose()]
    if strength == "none":
        return nn.Sequential(v2.Resize((side, side), smooth, antialias=True))
    if strength == "light":
        crop = v2.RandomResizedCrop(side, (0.8, 1.0), (0.9, 1.1), smooth, antialias=True)
        return nn.Sequential(crop, *symmetries)
    # Blur in proportion to the side: the same softness whatever the working resolution.
    blur = v2.GaussianBlur(kernel_size=2 * max(1, round(side / 64)) + 1, sigma=(0.2, max(0.6, side / 100)))
    operations = [
        v2.RandomResizedCrop(side, (0.45, 1.0), (0.75, 4 / 3), smooth, antialias=True),
        *symmetries,
        v2.RandomApply([v2.RandomAffine(degrees=30, shear=8, interpolation=smooth)], 0.3),
        RandomArtifacts(chances.artifacts),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomApply([v2.ColorJitter(hue=0.03)], 0.3),
        v2.RandomApply([blur], 0.2),
        RandomNoise(chances.noise) if chances.noise else None,
        v2.RandomApply([RandomJPEG((40, 95))], 0.3),
        v2.RandomErasing(chances.cutout, (0.02, 0.14), (0.5, 2.0), _MEAN_LEVELS) if chances.cutout else None,
    ]
    # What cannot happen draws no random number, so that a run of an older configuration sees the same images.
    return nn.Sequential(*(operation for operation in operations if operation is not None))
