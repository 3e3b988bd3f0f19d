"""Triton's `quality`: what speaks of the photograph and not of the lesion, for the requests that ask for it."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import engine, quality
from dermserve.model_card import ModelCard


class TritonPythonModel:
    """One instance is one process. Flags of the prepared pixels; on a CPU the distance to the training images, too."""

    def initialize(self, args):
        """Read from the card whether flags and distance mean anything for these weights."""
        repository = Path(args["model_repository"]).parent
        card = ModelCard.read(repository)
        outputs = {output["name"] for output in json.loads(args["model_config"])["output"]}
        self._measured = card.quality.measured
        self._distance = "ood" in outputs  # an engine for a GPU computes it with the rest
        self._novelty = engine.load_novelty(repository) if self._distance and card.ood.measured else None

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
        outputs = {"quality": scores}
        if self._distance:
            outputs["ood"] = np.zeros((len(pixels), 1), np.float32)
            if self._novelty:
                features = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
                outputs["ood"] = self._novelty(pixels, features)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])
