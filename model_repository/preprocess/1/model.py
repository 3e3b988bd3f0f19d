"""Triton's `preprocess` beside a TensorRT engine: batches of encoded images to tensors, by `dermserve.gpu`."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from dermserve import artifacts, gpu, image
from dermserve import quality as flags
from dermserve.errors import ImageError, StartupError
from dermserve.model_card import ModelCard


class TritonPythonModel:
    """One instance is one process; Triton calls `execute` with the requests that it has batched."""

    def initialize(self, args):
        """Refuse to load where this installation prepares images differently from the one behind the weights."""
        self.card = ModelCard.read(Path(args["model_repository"]).parent)
        image.require(self.card.preprocessing, remove_artifacts=self.card.remove_artifacts)
        threads = max(1, len(os.sched_getaffinity(0)) // 2)  # there are two instances
        try:
            if args["model_instance_kind"] != "GPU":
                raise StartupError("Triton has no GPU: images are prepared on the CPU.")
            self._prepare = gpu.Preparer(device_id=int(args["model_instance_device_id"]), batch=64, threads=threads)
        except StartupError as error:
            pb_utils.Logger.log_warn(f"preprocess: {error}")
            pool = ThreadPoolExecutor(threads)
            self._prepare = lambda images: list(pool.map(gpu.on_cpu, images))

    def execute(self, requests):
        """Prepare the images of all requests at once; a request that holds an unreadable one fails by itself."""
        encoded = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0] for request in requests]
        prepared = iter(self._prepare([one for images in encoded for one in images]))
        return [self._answer([next(prepared) for _ in images]) for images in encoded]

    def _answer(self, prepared):
        for index, result in enumerate(prepared):
            if isinstance(result, ImageError):
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(result.wire(index), pb_utils.TritonError.INVALID_ARG)
                )
        pixels = np.stack([result.pixels for result in prepared])
        # NaN leaves the flags to the step `quality`, which runs only where they are wanted.
        quality = np.full((len(prepared), 4), np.nan, np.float32)
        if self.card.remove_artifacts:
            if self.card.quality.measured:
                # Measured before hair is painted over: the flag speaks of the photograph that was sent.
                quality[:] = [flags.measure(one) for one in pixels]
            pixels = np.stack([artifacts.remove(one) for one in pixels])
        outputs = {
            "pixels": pixels,
            "quality": quality,
            "region": np.array([result.region for result in prepared], np.float32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])
