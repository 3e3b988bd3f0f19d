"""Triton's `classifier` on a CPU: the exported network on OpenVINO, one thread per instance."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from dermserve import engine


class TritonPythonModel:
    """One instance is one process with its own compiled model."""

    def initialize(self, args):
        """Compile the model in the precision that the configuration names; refuse files that are not the card's."""
        precision = json.loads(args["model_config"])["parameters"]["precision"]["string_value"]
        self._engine = engine.load(Path(args["model_repository"]).parent, precision)

    def execute(self, requests):
        """Run each request's images."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        results = self._engine.infer(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy())
        results["features"] = results["embedding"]  # what the step `quality` reads; see the ensemble's configuration
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values) for name, values in results.items() if name in wanted]
        )
