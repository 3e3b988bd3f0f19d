"""A hospital's gateway: many senders that keep each image until it is acknowledged."""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.system.drills.ways import Way

SENDERS = 16
_LONGEST_WAIT_S = 2.0  # a gateway would wait for as long as `Retry-After` says; a drill has not all day


def images(count: int, seed: int) -> list[bytes]:
    """Distinct JPEGs of 96×96 pixels, a smooth blot on skin each."""
    random_numbers = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = random_numbers.integers(60, 230, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        found.append(file.getvalue())
    return found


@dataclass
class Sent:
    """What the senders know in the end: by an image's key what it was acknowledged with, if the way tells; by status."""

    acknowledged: dict[str, Sequence[float] | None]
    refusals: Counter[int]


def send(way: Way, files: Sequence[bytes], *, rate: float, patience_s: float) -> Sent:
    """Send every image until it is acknowledged, `rate` new ones a second at most.

    Raises:
        AssertionError: an answer that no sender could understand, or an image not acknowledged in `patience_s`.
    """
    sent, lock, waiting = Sent({}, Counter()), threading.Lock(), iter(enumerate(files))
    start = time.monotonic()

    def work(number: int) -> None:
        pause = random.Random(number)
        with way.sending() as deliver:
            for index, data in _taken(waiting, lock):
                time.sleep(max(0.0, start + index / rate - time.monotonic()))
                while not (answer := deliver(data)).acknowledged:
                    with lock:
                        sent.refusals[answer.status] += 1
                    assert answer.passing, f"{answer.status:#x} for a good image"
                    assert time.monotonic() - start < patience_s, "an image was not acknowledged in time"
                    time.sleep(min(_LONGEST_WAIT_S, max(answer.wait_s, pause.uniform(0.05, 0.3))))
                with lock:
                    sent.acknowledged[way.key(data)] = answer.told

    with ThreadPoolExecutor(SENDERS) as pool:
        for future in [pool.submit(work, number) for number in range(SENDERS)]:
            future.result()
    return sent


def _taken(waiting: Iterator[tuple[int, bytes]], lock: threading.Lock) -> Iterator[tuple[int, bytes]]:
    while True:
        with lock:
            item = next(waiting, None)
        if item is None:
            return
        yield item
