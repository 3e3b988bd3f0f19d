"""The served network on this machine's CPU: the exported file on OpenVINO, set up one way for all who run it.

Triton's `classifier`, the in-process limit and the peers of the benchmarks load it from here, so that they differ in
nothing but what is measured. OpenVINO is imported when an engine is loaded, not with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dermserve.errors import StartupError
from dermserve.model_card import ONNX_PATH

_SETTINGS: Final[Mapping[str, Any]] = {
    "PERFORMANCE_HINT": "LATENCY",
    # Instances share the cores with decoding: pinned threads would fight with it.
    "ENABLE_CPU_PINNING": False,
    # The default is bfloat16 on CPUs that have it; the card's figures are those of FP32.
    "INFERENCE_PRECISION_HINT": "f32",
}


class Engine:
    """A compiled network with one request: one call at a time.

    `precision` is what it computes in, as answers name it (`FP32` or `INT8`).
    """

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads})
        self.precision = precision
        self._request = compiled.create_infer_request()
        self._outputs = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}

    def infer(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Map uint8 [N, 300, 300, 3] to every output by name, float32 [N, …], in memory of its own."""
        # Outputs are copied: Triton reads a response after the next request's call has been made.
        results = self._request.infer([pixels], share_inputs=True, share_outputs=False)
        return {name: results[index] for name, index in self._outputs.items()}


def load(repository: Path, *, threads: int = 1) -> Engine:
    """Compile what a model repository serves on a CPU.

    Raises:
        StartupError: the repository holds no exported network.
    """
    path = repository / ONNX_PATH
    if not path.exists():
        raise StartupError(f"There is no model at {path}: run `dermserve export` first.")
    return Engine(path, "FP32", threads)
