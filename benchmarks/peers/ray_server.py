"""Ray Serve: a deployment with a replica of one CPU for each core, and dynamic batches of up to eight.

Ray's documentation: "Resource Allocation" (serve/resource-allocation) for replicas and OMP_NUM_THREADS, which Ray sets to
`num_cpus`; "Dynamic Request Batching" (serve/advanced-guides/dyn-req-batch) for `serve.batch` and `max_ongoing_requests`;
"Performance Tuning" (serve/advanced-guides/performance) asks to leave RAY_SERVE_THROUGHPUT_OPTIMIZED off where the code
blocks, as a network does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.inside import BATCH, CORES, Model, prepare


@serve.deployment(num_replicas=CORES, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=16)
class Classifier:
    """Each replica holds a model."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01 if BATCH > 1 else 0.0)
    async def predict(self, images: list[bytes]) -> list[list[float]]:
        """The reported columns of each image."""
        return self.model.predict([prepare(image) for image in images])

    async def __call__(self, request: Request) -> list[float]:
        return await self.predict(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=CORES, include_dashboard=False, _temp_dir=str(Path.cwd()))
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), blocking=True)
