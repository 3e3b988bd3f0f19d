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
        card = ModelCard.read(Path(args["model_repository"]).parent)
        here = image.preprocessing_hash(remove_artifacts=card.remove_artifacts)
        if card.preprocessing != here:
            raise PreprocessingMismatch(
                f"The model card's preprocessing is {card.preprocessing[:12]}, this installation's is "
                f"{here[:12]}: install the pinned requirements, or train and export again."
            )
        self._removes = card.remove_artifacts
        self._flags = card.quality.measured

    def execute(self, requests):
        """Answer each request by itself: one that holds an unreadable image fails whole and disturbs no other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        pixels = np.empty((len(encoded), image.SIDE, image.SIDE, 3), np.uint8)
        region = np.empty((len(encoded), 4), np.float32)
        # NaN leaves the flags to the step `quality`, which runs only where they are wanted.
        quality = np.full((len(encoded), 4), np.nan, np.float32)
        for index, data in enumerate(encoded):
            try:
                pixels[index], region[index] = image.prepare(data)
            except ImageError as error:
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(error.wire(index), pb_utils.TritonError.INVALID_ARG)
                )
            if self._removes:
                if self._flags:
                    # Measured before hair is painted over: the flag speaks of the photograph that was sent.
                    quality[index] = flags.measure(pixels[index])
                pixels[index] = artifacts.remove(pixels[index])
        outputs = {"pixels": pixels, "quality": quality, "region": region}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])
