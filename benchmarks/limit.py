"""The most that this machine can do: the served functions in one process, without any server around them.

What `dermserve serve` reaches is read as a share of this limit. It uses the functions and the settings of the
embedded server: `dermserve.image.prepare`, and the committed ONNX file on OpenVINO in FP32, one thread per instance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermserve import engine
from dermserve.image import prepare
from dermserve.model_card import ONNX_PATH, sha256


@dataclass(frozen=True)
class Limit:
    """Images per second: `prepare` alone on one thread, the model alone, and both together on every instance."""

    prepare_one_thread: float
    model: float
    together: float
    instances: int
    model_sha256: str

    def as_rows(self) -> dict[str, Any]:
        return asdict(self)


def measure(repository: Path, pictures: Sequence[bytes], *, instances: int, seconds: float) -> Limit:
    """Measure for `seconds` each, after a warm-up. `pictures`: encoded images, used in turn.

    Raises:
        StartupError: the model repository holds no ONNX file.
    """
    models = [engine.load(repository) for _ in range(instances)]
    prepared = [prepare(picture).pixels[None] for picture in pictures]
    for model in models:  # one after the other: first calls made at once from two threads have hung
        model.infer(prepared[0])

    def decode(_instance: int, turn: int) -> None:
        prepare(pictures[turn % len(pictures)])

    def infer(instance: int, turn: int) -> None:
        models[instance].infer(prepared[turn % len(prepared)])

    def both(instance: int, turn: int) -> None:
        pixels: NDArray[np.uint8] = prepare(pictures[turn % len(pictures)]).pixels[None]
        models[instance].infer(pixels)

    return Limit(
        prepare_one_thread=rate(decode, 1, seconds),
        model=rate(infer, instances, seconds),
        together=rate(both, instances, seconds),
        instances=instances,
        model_sha256=sha256(repository / ONNX_PATH),
    )


def rate(work: Callable[[int, int], None], threads: int, seconds: float) -> float:
    """How often per second `work(thread, turn)` ends when each thread calls it over and over for about `seconds`."""

    def run(thread: int) -> int:
        turn = 0
        while time.perf_counter() < end:
            work(thread, turn)
            turn += 1
        return turn

    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(run, range(threads)))
    return done / (time.perf_counter() - start)
