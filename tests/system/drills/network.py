"""Triton's `melanoma` with a network whose answer follows from the pixels alone and costs a hash.

A drill then needs no reference run: what an image's answer must be is computed beside it, bit by bit, by `answer`.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermserve import image, labels
from dermserve.client import OUTPUT_SHAPES

_MODEL = Path("melanoma/1/model.py")
_PLACED = """
import served
from dermserve import engine
from tests.system.drills.network import Network

engine.load = Network
TritonPythonModel = served.TritonPythonModel
"""


def diagnoses(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Nine probabilities that no other picture has. `pixels`: uint8 [300, 300, 3]."""
    seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(pixels)).digest()[:8])
    return np.random.default_rng(seed).dirichlet(np.full(9, 0.7)).astype(np.float32)


def answer(jpeg: bytes) -> NDArray[np.float32]:
    """The four probabilities that an image must get: float32 [4]."""
    return _columns(diagnoses(image.prepare(jpeg).pixels))


def _columns(leaves: NDArray[np.float32]) -> NDArray[np.float32]:
    # A sum without rounding on the way: it is the same in whatever order a processor adds.
    sums = [
        math.fsum(leaves[labels.LEAVES.index(leaf)] for leaf in labels.COLUMN_LEAVES[name]) for name in labels.COLUMNS
    ]
    return np.array(sums, np.float32)


class Network:
    """In the place of `dermserve.engine.Engine`."""

    def __init__(self, *_: object) -> None:
        pass

    def infer(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        leaves = np.stack([diagnoses(one) for one in pixels])
        found = {name: np.zeros((len(pixels), *OUTPUT_SHAPES[name]), np.float32) for name in ("cam", "embedding")}
        return {**found, "diagnoses": leaves, "probabilities": np.stack([_columns(one) for one in leaves])}


def place(repository: Path, folder: Path) -> Path:
    """Copy a model repository to `folder` with this network in it; returns `folder`."""
    ignored = shutil.ignore_patterns("__pycache__", "*.plan", "*.engine", ".export-*")
    shutil.copytree(repository, folder, dirs_exist_ok=True, ignore=ignored)
    (folder / _MODEL).rename(folder / _MODEL.with_name("served.py"))
    (folder / _MODEL).write_text(_PLACED)
    return folder
