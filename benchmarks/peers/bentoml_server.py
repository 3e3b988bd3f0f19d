"""BentoML: one service with a worker for each core and adaptive batching of up to eight.

BentoML's documentation: "Parallelize requests handling" (build-with-bentoml/parallelize-requests) for `workers="cpu_count"` on
CPU workloads; "Adaptive batching" (get-started/adaptive-batching) for `batchable`; "Input and output types"
(build-with-bentoml/iotypes) for files.
"""

from __future__ import annotations

from pathlib import Path

import bentoml

from benchmarks.peers.inside import BATCH, CORES, Model, prepare


@bentoml.service(workers=CORES, traffic={"timeout": 60})
class Classifier:
    """Each worker holds a model."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=BATCH > 1, max_batch_size=max(BATCH, 2))
    def predict(self, images: list[Path]) -> list[list[float]]:
        """The reported columns of each image."""
        return self.model.predict([prepare(image.read_bytes()) for image in images])
