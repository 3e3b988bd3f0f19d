"""Mosec: a stage that decodes and one that infers in batches of up to eight, each with a process for each core.

Mosec's documentation: "PyTorch Examples" (examples/pytorch) for the two stages of its image model and for `deserialize`, which
reads the body as it is; `Server.append_worker` (reference) for `num`, `max_batch_size` and `max_wait_time`. Where
batches gain nothing, one stage does both, so that no pixels travel between processes.
"""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from benchmarks.peers.inside import BATCH, CORES, Model, prepare


class Decoding(Worker):
    """Body to pixels."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Any:
        return prepare(data)


class Inference(Worker):
    """Pixels to columns."""

    def __init__(self) -> None:
        self.model = Model()

    def forward(self, data: list[Any]) -> list[list[float]]:
        return self.model.predict(data)


class Both(Decoding):
    """Body to columns."""

    def __init__(self) -> None:
        self.model = Model()

    def forward(self, data: bytes) -> list[float]:
        return self.model.predict([prepare(data)])[0]


if __name__ == "__main__":
    server = Server()
    if BATCH > 1:
        server.append_worker(Decoding, num=CORES)
        server.append_worker(Inference, num=CORES, max_batch_size=BATCH, max_wait_time=10)
    else:
        server.append_worker(Both, num=CORES)
    server.run()
