"""Triton's `classifier` on a CPU: the exported network on OpenVINO, one thread per instance."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import engine


class TritonPythonModel:
    """One instance is one process with its own compiled model."""

    def initialize(self, args):
        """Compile the model in the precision that the configuration names; refuse files that are not the card's."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._engine = engine.load(Path(args["model_repository"]).parent, parameters["precision"]["string_value"])
        self._batch = int(parameters["batch"]["string_value"])

    def execute(self, requests):
        """Run the images of all requests together, at most `batch` at a time, and give each request its own."""
        given = [pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        results = self._infer(given[0] if len(given) == 1 else np.concatenate(given))
        results["features"] = results["embedding"]  # what the step `quality` reads; see the ensemble's configuration
        responses, start = [], 0
        for request, pixels in zip(requests, given, strict=True):
            wanted, end = request.requested_output_names(), start + len(pixels)
            tensors = [pb_utils.Tensor(name, results[name][start:end]) for name in results if name in wanted]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses

    def _infer(self, pixels):
        # Memory for activations grows with the batch, and a batch of another size is compiled anew: a client's 64
        # images are run in the few sizes that were warmed up.
        parts = [self._engine.infer(pixels[at : at + self._batch]) for at in range(0, len(pixels), self._batch)]
        return (
            parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        )
