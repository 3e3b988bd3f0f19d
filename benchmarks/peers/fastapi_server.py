"""Plain FastAPI: a `def` endpoint that takes an upload, one uvicorn worker for each core.

FastAPI's documentation: "Request Files" (tutorial/request-files) for `UploadFile`, "Concurrency and async / await"
(async) for `def` around code that blocks, "Server Workers" (deployment/server-workers) for `--workers`. It has no batching.
"""

from __future__ import annotations

from fastapi import FastAPI, UploadFile

from benchmarks.peers.inside import Model, prepare

app = FastAPI()
model = Model()


@app.post("/predict")
def predict(file: UploadFile) -> list[float]:
    """The reported columns of one image."""
    return model.predict([prepare(file.file.read())])[0]
