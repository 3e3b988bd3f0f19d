"""Logits of prepared images with a PyTorch model: for looks during training and for the figures in the card."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermserve.image import SIDE
from training.model import normalise
from training.pixels import Pixels, ShowProgress, reduced, silent


@torch.inference_mode()
def predict(
    model: nn.Module,
    pixels: Pixels,
    rows: NDArray[np.int64],
    side: int,
    device: torch.device,
    *,
    batch_size: int = 16,
    show: ShowProgress = silent,
) -> NDArray[np.float32]:
    """Logits of `rows` of prepared images, float32 [len(rows), 9] in the order of `labels.LEAVES`.

    `pixels` is uint8 [N, 300, 300, 3]; images are reduced to `side` px where that is smaller.
    """
    model.eval()
    found = []
    starts = range(0, len(rows), batch_size)
    for start in show(starts, f"Scoring at {side} px", len(starts)):
        some = rows[start : start + batch_size]
        images = reduced(pixels, some, side) if side < SIDE else pixels[some]
        found.append(model(to_input(images, device)).float().cpu().numpy())
    return np.concatenate(found)


def to_input(images: Pixels, device: torch.device) -> Tensor:
    """Uint8 [N, H, W, 3] → the network's input: normalised float32 [N, 3, H, W], channels last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return normalise(tensor).contiguous(memory_format=torch.channels_last)


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of giving them back to the system after every layer.

    A layer's activations are larger than glibc's threshold for own mappings, so each is mapped, zeroed page by page
    and unmapped again. On two cores that took a third of a training step at 128 px and most of inference at 300 px
    (4 instead of 27 images/s).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
