"""A classifier that reads nothing and answers constants at once; `benchmarks.noop` puts it where the real one stands."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Every output of the configuration, in its shape; probabilities that a client's check lets pass."""

    def initialize(self, args):
        """Make the answers beforehand, as large as the largest batch."""
        config = json.loads(args["model_config"])
        largest = max(1, config["max_batch_size"])
        self._answers = {
            output["name"]: np.zeros((largest, *map(int, output["dims"])), np.float32) for output in config["output"]
        }
        self._answers["probabilities"][:] = (0.7, 0.1, 0.2, 0.15)

    def execute(self, requests):
        """Answer each request for as many images as it holds."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        count = len(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy())
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, self._answers[name][:count]) for name in wanted if name in self._answers]
        )
