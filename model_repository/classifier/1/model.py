"""Triton's `classifier` on a CPU: the exported network on OpenVINO, one thread per instance."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from dermserve import engine
from dermserve.errors import StartupError
from dermserve.model_card import ONNX_PATH, ModelCard, sha256


class TritonPythonModel:
    """One instance is one process with its own compiled model."""

    def initialize(self, args):
        """Compile the model; refuse weights that are not the card's."""
        repository = Path(args["model_repository"]).parent
        if sha256(repository / ONNX_PATH) != ModelCard.read(repository).weights_sha256:
            raise StartupError("The weights are not those of the model card: run `dermserve export` again.")
        self._engine = engine.load(repository)

    def execute(self, requests):
        """Run each request's batch; only the outputs asked for are sent back."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        results = self._engine.infer(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy())
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, results[name]) for name in results if name in wanted])
