"""The embedded Triton by itself, on a copy of the model repository, for tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from deploy import repository
from deploy.triton import child
from dermserve.client import TritonClient
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from tests.system.stack import free_ports

# In the network's place: says of an image how bright it is, and takes its time; `{seconds}` an image.
SLOW = """
import time
import numpy as np
import served
from dermserve import engine

class Network:
    def __init__(self, *_):
        pass

    def infer(self, pixels):
        time.sleep({seconds} * len(pixels))
        brightness = pixels.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
        known = dict(probabilities=4, diagnoses=9, embedding=1536)
        outputs = {{name: np.repeat(brightness[:, None], width, 1) for name, width in known.items()}}
        return outputs | dict(cam=np.repeat(brightness, 100).reshape(-1, 10, 10))

engine.load = Network
TritonPythonModel = served.TritonPythonModel
"""


class Embedded:
    """A running server; `grpc` and `http` are its addresses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.grpc = f"127.0.0.1:{settings.triton_grpc_port}"
        self.http = f"http://127.0.0.1:{settings.triton_http_port}"
        self.raw = triton.InferenceServerClient(self.grpc)

    def client(self) -> TritonClient:
        return TritonClient([self.grpc])

    def counts(self, model: str) -> Any:
        """Triton's statistics of a model."""
        return self.raw.get_inference_statistics(model).model_stats[0]

    def metrics(self) -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.settings.triton_metrics_port}/metrics", timeout=10
        ) as answer:
            return str(answer.read().decode())

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        request = urllib.request.Request(self.http + path, b"{}" if method == "POST" else None, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def running(
    folder: Path,
    *,
    slow_s: float | None = None,
    queue: int | None = None,
    card: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Embedded]:
    """Start Triton as `dermserve serve` does.

    Args:
        folder: an empty one, for its state.
        slow_s: put a network in the real one's place that needs so long for an image.
        queue: requests that the bulk queues hold, before they are fitted to the cores; interactive ones half as many.
        card: what the model card says instead.
        options: further settings.
    """
    models = folder / "model_repository"
    shutil.copytree(Settings().model_repository, models, ignore=shutil.ignore_patterns("__pycache__"))
    if slow_s is not None:
        model = models / "melanoma/1/model.py"
        model.rename(model.with_name("served.py"))
        model.write_text(SLOW.format(seconds=slow_s))
    if card is not None:
        ModelCard.read(models).model_copy(update=card).write(models)
    if queue is not None:
        path = models / "melanoma/configs/openvino.pbtxt"
        text = path.read_text().replace("max_queue_size: 64", f"max_queue_size: {queue // 2}")
        path.write_text(text.replace("max_queue_size: 256", f"max_queue_size: {queue}"))
    grpc, http, metrics = free_ports(3)
    settings = Settings(
        state_dir=folder, model_repository=models,
        triton_grpc_port=grpc, triton_http_port=http, triton_metrics_port=metrics, **options,
    )  # fmt: skip
    repository.fit(models, settings)
    server = child(settings, {**os.environ, "PYTHONPATH": str(Path(repository.__file__).parents[1])})
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen(server.command, env=dict(server.environment), stdout=log, stderr=log)
        try:
            one = Embedded(settings)
            deadline = time.monotonic() + 120
            while not one.client().ready():
                assert process.poll() is None, (folder / "triton.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "Triton did not become ready"
                time.sleep(0.1)
            yield one
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()
                asyncio.run(server.clean())
