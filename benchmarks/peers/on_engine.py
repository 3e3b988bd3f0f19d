"""dermserve's decoding and engine, for use inside another server: as in Triton's `preprocess` and `classifier`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dermserve import engine, image
from dermserve.settings import Settings

BATCH = 1  # on a CPU a batch gains nothing, and one worker would wait while another takes all


def prepare(encoded: bytes) -> NDArray[np.uint8]:
    """Encoded image → uint8 [300, 300, 3]."""
    return image.prepare(encoded).pixels


class Model:
    """The served network, one thread; calls from several threads take turns."""

    def __init__(self) -> None:
        wanted = Settings().precision
        self._engine = engine.load(Settings().model_repository, None if wanted == "auto" else wanted)
        self._turn = threading.Lock()
        self.predict([np.zeros((image.SIDE, image.SIDE, 3), np.uint8)])  # the first call is the slow one

    def predict(self, prepared: Sequence[NDArray[np.uint8]]) -> list[list[float]]:
        """The four reported columns of each image."""
        with self._turn:
            return [self._engine.infer(pixels[None])["probabilities"][0].tolist() for pixels in prepared]
