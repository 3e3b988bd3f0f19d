"""Random changes to a training image, of torchvision v2 and independent of the label.

They take away what tells a *source* instead of a lesion: aspect ratio (some public copies are square whatever the
original was), sharpness, JPEG quality, colour cast and orientation.
"""

from __future__ import annotations

from typing import Literal

import simplejpeg
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from training.artifacts import RandomArtifacts

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


def augmentation(strength: Strength, side: int, artifacts: float = 0.0) -> nn.Module:
    """The transform for training images: uint8 [3, H, W] → uint8 [3, side, side]. It draws from torch's global RNG.

    `light`: symmetries and a mild crop, for the `seed` preset. `full`: also zoom, aspect ratio, rotation, shear,
    colour, blur, re-compression, and with probability `artifacts` drawn hair, ink and the like. Crops keep at least
    45 % of the area, so the lesion stays in view.
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
    return nn.Sequential(
        v2.RandomResizedCrop(side, (0.45, 1.0), (0.75, 4 / 3), smooth, antialias=True),
        *symmetries,
        v2.RandomApply([v2.RandomAffine(degrees=30, shear=8, interpolation=smooth)], 0.3),
        RandomArtifacts(artifacts),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomApply([v2.ColorJitter(hue=0.03)], 0.3),
        v2.RandomApply([blur], 0.2),
        v2.RandomApply([RandomJPEG((40, 95))], 0.3),
    )
