"""The most that this machine can do: the served functions without any server around them.

What `dermserve serve` reaches is read as a share of this limit. It runs what the embedded server runs,
`dermserve.image.prepare` and the network of `dermserve.engine`, on one worker of one thread for each core, in every
arrangement worth trying: threads of one process or a process each, and batches of 1 and 4. The best one counts.

The HTTP API asks for more than the network: quality flags and the distance to the training images. What these take of
the limit is measured beside it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from dermserve import engine, quality
from dermserve.image import prepare
from dermserve.model_card import ModelCard
from dermserve.settings import Settings

BATCHES = (1, 4)
Kind = Literal["threads", "processes"]
Work = Literal["decode", "model", "both", "served"]
"""`both`: decoding and the network; `served`: these, flags and distance, as the HTTP API asks for."""
_mine = threading.local()
_first_call = threading.Lock()


class Arrangement(NamedTuple):
    """How the workers are laid out: threads of one process or processes, and images per call of the network."""

    kind: Kind
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind}, batch {self.batch}"


KINDS: tuple[Kind, ...] = ("threads", "processes")
ARRANGEMENTS = tuple(itertools.starmap(Arrangement, itertools.product(KINDS, BATCHES)))


class Crew:
    """One worker for each core, loaded and warm. Made by `crew`."""

    def __init__(self, pool: Executor, size: int) -> None:
        self._pool = pool
        self.size = size

    def rate(self, work: Work, seconds: float, *, batch: int = 1) -> float:
        """Images per second over all workers, each of which works for about `seconds`."""
        running = [self._pool.submit(_work, work, batch, seconds) for _ in range(self.size)]
        return sum(one.result() for one in running)


@contextmanager
def crew(kind: Kind, files: Sequence[bytes], repository: Path | None, *, workers: int | None = None) -> Iterator[Crew]:
    """Start the workers of one arrangement.

    Args:
        kind: threads or processes.
        files: encoded images, used in turn.
        repository: the model repository whose network to load; None: `decode` is all that will be asked for.
        workers: by default one for each core that this process may use.

    Raises:
        StartupError: the repository holds no network.
    """
    size = workers or cores()
    equipment = (repository, list(files))
    pool: Executor
    if kind == "threads":
        pool = ThreadPoolExecutor(size, initializer=_equip, initargs=equipment)
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(size, mp_context=context, initializer=_equip, initargs=equipment)
    with pool:
        found = Crew(pool, size)
        found.rate("decode" if repository is None else "both", 0.5)  # starts and warms every worker
        yield found


@dataclass
class Limit:
    """Images per second of every round: each arrangement with decoding; by kind of worker, parts of it and what is served."""

    both: dict[Arrangement, list[float]]
    decode: dict[Kind, list[float]]
    model: dict[Kind, list[float]]
    served: dict[Kind, list[float]]

    @property
    def best(self) -> Arrangement:
        """The arrangement with the highest median: the ceiling."""
        return max(self.both, key=lambda one: median(self.both[one]))

    @property
    def ceiling(self) -> float:
        return median(self.both[self.best])

    @property
    def best_decoder(self) -> Kind:
        return max(self.decode, key=lambda one: median(self.decode[one]))

    def as_rows(self) -> dict[str, Any]:
        """For each thing measured, as a line of a table: median, smallest and largest round, images/s."""
        lines = {f"decode and model, {one}": values for one, values in self.both.items()}
        lines |= {f"decode alone, {kind}": values for kind, values in self.decode.items()}
        lines |= {f"model alone, {kind}": values for kind, values in self.model.items()}
        lines |= {f"with flags and distance, {kind}": values for kind, values in self.served.items()}
        return {
            name: {"median": round(median(found), 2), "min": round(min(found), 2), "max": round(max(found), 2)}
            for name, found in lines.items()
            if found
        }


def measure(
    files: Sequence[bytes],
    repository: Path,
    *,
    seconds: float,
    rounds: int = 3,
    batches: Sequence[int] = BATCHES,
    announce: Callable[[str], None] = lambda _: None,
) -> Limit:
    """Measure every arrangement `rounds` times in turn, in reverse order every second time.

    `announce` is told what is about to be measured, `rounds * (2 * len(batches) + 6)` times.
    """
    arrangements = [Arrangement(kind, batch) for kind in KINDS for batch in batches]
    found = Limit({one: [] for one in arrangements}, *({kind: [] for kind in KINDS} for _ in range(3)))
    with crew("threads", files, repository) as threads, crew("processes", files, repository) as processes:
        crews = {"threads": threads, "processes": processes}
        for number in range(rounds):
            turn = 1 if number % 2 == 0 else -1
            for one in arrangements[::turn]:
                announce(str(one))
                found.both[one].append(crews[one.kind].rate("both", seconds, batch=one.batch))
            for kind in KINDS[::turn]:
                announce(f"decode alone, {kind}")
                found.decode[kind].append(crews[kind].rate("decode", seconds))
                announce(f"model alone, {kind}")
                found.model[kind].append(crews[kind].rate("model", seconds))
                announce(f"with flags and distance, {kind}")
                found.served[kind].append(crews[kind].rate("served", seconds))
    return found


@contextmanager
def reference(
    files: Sequence[bytes], repository: Path | None, *, seconds: float, trial_s: float = 1.0
) -> Iterator[tuple[str, Callable[[], float]]]:
    """The ceiling as a window to take beside every measurement: which arrangement it is, and how to take one.

    A short trial finds the best arrangement of this moment; its figure is measured anew in every window.

    Args:
        files: encoded images, used in turn.
        repository: whose network to run; None: the limit of decoding alone.
        seconds: length of one window.
        trial_s: length of each of the trial's windows.
    """
    trials: dict[Arrangement, list[float]] = {}
    with ExitStack() as stack:
        crews = {kind: stack.enter_context(crew(kind, files, repository)) for kind in KINDS}
        for _ in range(3):
            for one in ARRANGEMENTS if repository is not None else (Arrangement(kind) for kind in KINDS):
                work: Work = "decode" if repository is None else "both"
                trials.setdefault(one, []).append(crews[one.kind].rate(work, trial_s, batch=one.batch))
    best = max(trials, key=lambda one: median(trials[one]))
    with crew(best.kind, files, repository) as chosen:
        yield str(best), partial(chosen.rate, "decode" if repository is None else "both", seconds, batch=best.batch)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _equip(repository: Path | None, files: list[bytes]) -> None:
    _mine.repository, _mine.files = repository, itertools.cycle(files)
    _mine.engine = None


def _loaded() -> engine.Engine:
    if _mine.engine is None:  # not in `_equip`, where an error would be lost
        with _first_call:  # first calls made at once from two threads have hung
            wanted = Settings().precision
            _mine.engine = engine.load(_mine.repository, None if wanted == "auto" else wanted)
            fitted = ModelCard.read(_mine.repository).ood.measured
            _mine.novelty = engine.load_novelty(_mine.repository) if fitted else lambda *_: None
            _mine.pixels = prepare(next(_mine.files)).pixels[None]
            _mine.novelty(_mine.pixels, _mine.engine.infer(_mine.pixels)["embedding"])
    found: engine.Engine = _mine.engine
    return found


def _work(work: Work, batch: int, seconds: float) -> float:
    network = None if work == "decode" else _loaded()
    prepared = np.repeat(_mine.pixels, batch, axis=0) if work == "model" else None
    done = 0
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        if network is None:
            prepare(next(_mine.files))
            done += 1
            continue
        if work == "served":
            pixels = prepare(next(_mine.files)).pixels
            quality.measure(pixels)
            _mine.novelty(pixels[None], network.infer(pixels[None])["embedding"])
        elif prepared is None:
            network.infer(np.stack([prepare(next(_mine.files)).pixels for _ in range(batch)]))
        else:
            network.infer(prepared)
        done += 1 if work == "served" else batch
    return done / (now - began)
