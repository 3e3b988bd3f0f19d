"""Which servers are compared, how each is started, and how it wants its image."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CORES = len(os.sched_getaffinity(0))
"""Workers that each server gets: one for each core that may be used."""
CHOICE = "DERMSERVE_PEER_MODEL"
"""Variable that tells a server what to run inside; see `inside.py`."""
_HERE = Path(__file__).parent

Encoding = Literal["raw", "base64", "form:file", "form:images"]


@dataclass(frozen=True)
class Peer:
    """A server of `.venv-peers/`.

    Args:
        name: as people know it.
        module: the file in this folder that sets it up.
        command: program of `.venv-peers/bin` and its arguments; `{port}` stands for the port.
        encoding: how an image travels: as the body, as a form's file, or as base64 in JSON.
        path: where it goes.
    """

    name: str
    module: str
    command: tuple[str, ...]
    encoding: Encoding
    path: str = "/predict"

    @property
    def lines(self) -> int:
        """Lines of code that a user writes for this server, without those of the network inside."""
        return code_lines((_HERE / f"{self.module}.py").read_text())


PEERS = (
    Peer(
        "FastAPI",
        "fastapi_server",
        ("uvicorn", "benchmarks.peers.fastapi_server:app", "--workers", str(CORES), "--port", "{port}"),
        "form:file",
    ),
    Peer("LitServe", "litserve_server", ("python", "-m", "benchmarks.peers.litserve_server", "{port}"), "base64"),
    Peer(
        "BentoML",
        "bentoml_server",
        ("bentoml", "serve", "benchmarks.peers.bentoml_server:Classifier", "--host", "127.0.0.1", "--port", "{port}"),
        "form:images",
    ),
    Peer("Ray Serve", "ray_server", ("python", "-m", "benchmarks.peers.ray_server", "{port}"), "raw", "/"),
    Peer(
        "Mosec",
        "mosec_server",
        # Its timeout of 3 s is meant for a GPU; nothing is to be dropped here.
        ("python", "-m", "benchmarks.peers.mosec_server", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
        "raw",
        "/inference",
    ),
)  # fmt: skip


def code_lines(source: str) -> int:
    """Lines of Python that hold code: no blank line, comment or docstring."""
    tree = ast.parse(source)
    lines = {number for number, line in enumerate(source.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)
