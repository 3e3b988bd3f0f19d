"""A hospital's gateway: many senders that keep each image until it is acknowledged."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

SENDERS = 16
_ANSWER_S = 30.0
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


def key_of(data: bytes) -> str:
    """The idempotency key of an image that is sent without one."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Sent:
    """What the senders know in the end: the probabilities that each image was acknowledged with, by its key."""

    acknowledged: dict[str, Sequence[float]]
    refusals: Counter[int]
    """By HTTP status; 0 where no answer came."""


def send(url: str, api_key: str, files: Sequence[bytes], *, rate: float, patience_s: float) -> Sent:
    """Send every image until it is acknowledged, `rate` new ones a second at most.

    Raises:
        AssertionError: an answer that no sender could understand, or an image not acknowledged in `patience_s`.
    """
    sent, lock, waiting = Sent({}, Counter()), threading.Lock(), iter(enumerate(files))
    start = time.monotonic()

    def work(number: int) -> None:
        pause = random.Random(number)
        with httpx.Client(headers={"Authorization": f"Bearer {api_key}"}, timeout=_ANSWER_S) as client:
            for index, data in _taken(waiting, lock):
                time.sleep(max(0.0, start + index / rate - time.monotonic()))
                while True:
                    status, body = _post(client, url, data)
                    with lock:
                        if status in (200, 201):
                            sent.acknowledged[key_of(data)] = list(body["probabilities"].values())
                            break
                        sent.refusals[status] += 1
                    assert status in (0, 429, 503), f"{status}: {body}"
                    assert time.monotonic() - start < patience_s, "an image was not acknowledged in time"
                    hint = float(body.get("retry_after", 0) or 0)
                    time.sleep(min(_LONGEST_WAIT_S, max(hint, pause.uniform(0.05, 0.3))))

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


def _post(client: httpx.Client, url: str, data: bytes) -> tuple[int, dict[str, Any]]:
    try:
        answer = client.post(f"{url}/v1/predictions", content=data, headers={"Content-Type": "image/jpeg"})
    except httpx.HTTPError:
        return 0, {}
    body = answer.json()
    return answer.status_code, body | {"retry_after": answer.headers.get("retry-after")}
