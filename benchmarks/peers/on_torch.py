"""Pillow, torchvision and an eager FP32 network on PyTorch: what every one of the servers' guides shows.

One thread for each worker is set by OMP_NUM_THREADS in the environment. `DERMSERVE_PEER_MODEL` may ask for
more than the guides do: `channels-last` (PyTorch's "Performance Tuning Guide") or `compiled` (`torch.compile`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from benchmarks.peers import network
from dermserve.image import SIDE, fit
from dermserve.settings import Settings

BATCH = 8
# ImageNet's mean and standard deviation, as in timm's and torchvision's own transforms.
_TO_TENSOR = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


def prepare(encoded: bytes) -> NDArray[np.float32]:
    """Encoded image → float32 [3, 300, 300], normalised.

    Pillow decodes and resizes; the crop of black frames is dermserve's, because without it the answers would differ.
    """
    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    return _TO_TENSOR(Image.fromarray(fit(np.asarray(picture)).pixels)).numpy()


class Model:
    """The committed weights in PyTorch."""

    def __init__(self) -> None:
        self._network = network.load(Settings().model_repository)
        self._layout = torch.contiguous_format
        match os.environ.get("DERMSERVE_PEER_MODEL"):
            case "channels-last":
                self._layout = torch.channels_last
                self._network = self._network.to(memory_format=self._layout)
            case "compiled":
                torch._inductor.config.freezing = True
                self._network = torch.compile(self._network)
        self.predict([np.zeros((3, SIDE, SIDE), np.float32)])  # the first call is the slow one

    def predict(self, prepared: Sequence[NDArray[np.float32]]) -> list[list[float]]:
        """The four reported columns of each image, from one call of the network."""
        with torch.inference_mode():
            images = torch.from_numpy(np.stack(prepared)).contiguous(memory_format=self._layout)
            return self._network(images).tolist()
