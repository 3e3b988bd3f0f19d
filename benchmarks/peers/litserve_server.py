"""LitServe: one `LitAPI`, batches of up to eight, one worker for each core.

LitServe's documentation: "Speed up serving by 200x" for base64 in JSON, decoding in `decode_request`, `max_batch_size` and
`workers_per_device`; "Batching" (features/batching) for `batch_timeout`.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

from benchmarks.peers.inside import BATCH, CORES, Model, prepare


class Classifier(litserve.LitAPI):
    """Decodes, predicts and answers in the worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the interface
        self.model = Model()

    def decode_request(self, request: dict[str, str]) -> Any:
        return prepare(base64.b64decode(request["image"]))

    def predict(self, prepared: Any) -> list[Any]:
        return self.model.predict(prepared) if BATCH > 1 else self.model.predict([prepared])[0]

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probabilities": output}


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=0.01 if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=CORES)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
