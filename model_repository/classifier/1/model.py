"""Triton's `classifier` on a CPU: the committed ONNX file on OpenVINO, one thread per instance."""

from pathlib import Path

import openvino
import triton_python_backend_utils as pb_utils

from dermserve.errors import StartupError
from dermserve.model_card import ONNX_PATH, ModelCard, sha256


class TritonPythonModel:
    """One instance is one process with its own compiled model."""

    def initialize(self, args):
        """Compile the model. One thread each and no pinning: instances share the cores with decoding."""
        folder = Path(args["model_repository"]) / args["model_version"]
        card = ModelCard.read(Path(args["model_repository"]).parent)
        if sha256(folder / ONNX_PATH.name) != card.weights_sha256:
            raise StartupError("The weights are not those of the model card: run `dermserve export` again.")
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(folder / ONNX_PATH.name),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": 1,
                "ENABLE_CPU_PINNING": False,
                # The default is bfloat16 on CPUs that have it; the card's figures are those of FP32.
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._request = compiled.create_infer_request()
        self._outputs = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}

    def execute(self, requests):
        """Run each request's batch; only the outputs asked for are sent back."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
        results = self._request.infer([pixels], share_inputs=True)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, results[index]) for name, index in self._outputs.items() if name in wanted]
        )
