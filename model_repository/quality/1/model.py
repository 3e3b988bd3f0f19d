"""Triton's `quality` beside an engine for a GPU: flags of the prepared pixels, for the requests that ask for them."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import quality
from dermserve.model_card import ModelCard


class TritonPythonModel:
    """One instance is one process."""

    def initialize(self, args):
        """Read from the card whether flags mean anything for these weights."""
        self._measured = ModelCard.read(Path(args["model_repository"]).parent).quality.measured

    def execute(self, requests):
        """Zeros where the card does not vouch for them."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
        scores = np.zeros((len(pixels), 4), np.float32)
        if self._measured:
            scores[:] = pb_utils.get_input_tensor_by_name(request, "measured").as_numpy()
            for index in np.flatnonzero(np.isnan(scores[:, 0])):
                scores[index] = quality.measure(pixels[index])
        return pb_utils.InferenceResponse([pb_utils.Tensor("quality", scores)])
