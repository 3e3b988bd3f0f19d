"""Triton's `melanoma` on a CPU: encoded images to all outputs, one process with one thread for each core."""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import artifacts, engine, image, quality
from dermserve.errors import ImageError
from dermserve.model_card import ModelCard

# Images that are decoded before the network runs on the first: as many single ones as are handed over at a time. The pixels
# of more would only push each other out of the caches.
_AHEAD = 4


class TritonPythonModel:
    """One instance is one process with its own compiled network."""

    def initialize(self, args):
        """Refuse files that are not the card's, and an installation that prepares images differently than it says."""
        repository = Path(args["model_repository"]).parent
        parameters = {name: one["string_value"] for name, one in json.loads(args["model_config"])["parameters"].items()}
        os.nice(int(parameters["niceness"]))
        self._card = ModelCard.read(repository)
        image.require(self._card.preprocessing, remove_artifacts=self._card.remove_artifacts)
        self._engine = engine.load(repository, parameters["precision"])
        self._novelty = engine.load_novelty(repository) if self._card.ood.measured else None
        # The first call of a compiled network takes several times as long.
        pixels = np.zeros((1, image.SIDE, image.SIDE, 3), np.uint8)
        embedding = self._engine.infer(pixels)["embedding"]
        if self._novelty:
            self._novelty(pixels, embedding)

    def execute(self, requests):
        """Answer each request by itself: one that holds an unreadable image fails whole and disturbs no other.

        All but the last get their answers as soon as these are there. Several are taken at a time because a process waits
        for a millisecond between what Triton hands to it, and because decoding takes an eighth less where the network has
        not passed through the caches since the image before.
        """
        prepared = (self._attempt(self._prepare, request) for request in requests)
        if sum(map(_images, requests)) <= _AHEAD:
            prepared = iter(list(prepared))
        for request in requests[:-1]:
            request.get_response_sender().send(
                self._answer(request, next(prepared)), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )
        return [None] * (len(requests) - 1) + [self._answer(requests[-1], next(prepared))]

    def _answer(self, request, images):
        outputs = images if isinstance(images, pb_utils.TritonError) else self._attempt(self._outputs, request, images)
        if isinstance(outputs, pb_utils.TritonError):
            return pb_utils.InferenceResponse(error=outputs)
        return pb_utils.InferenceResponse(outputs)

    def _attempt(self, step, *arguments):
        """What `step` returns, or the error that its request is to be answered with."""
        try:
            return step(*arguments)
        except _Unreadable as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # the requests beside it are to know nothing of it, and its sender no details
            pb_utils.Logger.log_error(f"melanoma: {type(error).__name__}: {error}")
            return pb_utils.TritonError("The model failed.")

    def _prepare(self, request):
        """The request's pixels, regions and flags."""
        encoded = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        pixels = np.empty((len(encoded), image.SIDE, image.SIDE, 3), np.uint8)
        region = np.empty((len(encoded), 4), np.float32)
        flags = np.zeros((len(encoded), 4), np.float32)
        flagged = "quality" in request.requested_output_names() and self._card.quality.measured
        for index, data in enumerate(encoded):
            try:
                pixels[index], region[index] = image.prepare(data)
            except ImageError as error:
                raise _Unreadable(error.wire(index)) from error
            if flagged:
                # Measured before hair is painted over: the flag speaks of the photograph that was sent.
                flags[index] = quality.measure(pixels[index])
            if self._card.remove_artifacts:
                pixels[index] = artifacts.remove(pixels[index])
        return pixels, region, flags

    def _outputs(self, request, images):
        wanted = request.requested_output_names()
        pixels, region, flags = images
        outputs = {"region": region, "quality": flags, **self._engine.infer(pixels)}
        if "ood" in wanted:
            outputs["ood"] = (
                self._novelty(pixels, outputs["embedding"]) if self._novelty else np.zeros((len(pixels), 1), np.float32)
            )
        return [pb_utils.Tensor(name, values) for name, values in outputs.items() if name in wanted]


def _images(request):
    return pb_utils.get_input_tensor_by_name(request, "image").shape()[0]


class _Unreadable(Exception):
    """Its text is what the sender reads."""
