"""Triton's `preprocess`: encoded images to the tensor that the classifier reads, by `dermserve.image`."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import artifacts, image
from dermserve import quality as flags
from dermserve.errors import ImageError, PreprocessingMismatch
from dermserve.model_card import ModelCard


class TritonPythonModel:
    """One instance is one process; Triton calls `execute` with the requests that it has batched."""

    def initialize(self, args):
        """Refuse to load where this installation prepares images differently from the one behind the weights."""
        self.card = ModelCard.read(Path(args["model_repository"]).parent)
        here = image.preprocessing_hash(remove_artifacts=self.card.remove_artifacts)
        if self.card.preprocessing != here:
            raise PreprocessingMismatch(
                f"The model card's preprocessing is {self.card.preprocessing[:12]}, this installation's is "
                f"{here[:12]}: install the pinned requirements, or train and export again."
            )

    def execute(self, requests):
        """Answer each request by itself: one that holds an unreadable image fails whole and disturbs no other."""
        return [_answer(request, self.card) for request in requests]


def _answer(request, card):
    encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
    wanted = request.requested_output_names()
    count = len(encoded)
    pixels = np.empty((count, image.SIDE, image.SIDE, 3), np.uint8)
    quality = np.zeros((count, 4), np.float32)
    region = np.empty((count, 4), np.float32)
    for index in range(count):
        try:
            pixels[index], region[index] = image.prepare(encoded[index, 0])
        except ImageError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(error.wire(index), pb_utils.TritonError.INVALID_ARG)
            )
        # Measured before hair is painted over: the flag speaks of the photograph that was sent.
        if card.quality.measured and "quality" in wanted:
            quality[index] = flags.measure(pixels[index])
        if card.remove_artifacts:
            pixels[index] = artifacts.remove(pixels[index])
    outputs = {"pixels": pixels, "quality": quality, "region": region}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in outputs if name in wanted])
