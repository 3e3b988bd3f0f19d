"""Answers of what the servers run inside, without a server: `python -m benchmarks.peers.answers IMAGE…` prints JSON."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.inside import Model, prepare

_PACKAGES = (
    "fastapi",
    "uvicorn",
    "litserve",
    "bentoml",
    "ray",
    "mosec",
    "torch",
    "timm",
    "openvino",
    "pillow",
    "numpy",
)

if __name__ == "__main__":
    model = Model()
    answers = [model.predict([prepare(Path(name).read_bytes())])[0] for name in sys.argv[1:]]
    sys.stdout.write(json.dumps({"answers": answers, "versions": {name: version(name) for name in _PACKAGES}}) + "\n")
