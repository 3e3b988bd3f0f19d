"""A hospital's gateway: many senders that keep each image until it is acknowledged, and what the database says of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.system.drills import network

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


@dataclass(frozen=True)
class Outcome:
    """One line of the table: what a drill came to."""

    killed: str
    times: int
    acknowledged: int
    stored: int
    doubled: int
    lost: int
    different: int
    refusals: Mapping[int, int]

    def check(self, images: int) -> None:
        """Fail unless every image is stored exactly once, with the answer it gets without faults."""
        assert (self.doubled, self.lost, self.different) == (0, 0, 0)
        assert self.acknowledged == self.stored == images


def compare(
    killed: str, times: int, sent: Sent, files: Sequence[bytes], stored: Sequence[Mapping[str, Any]]
) -> Outcome:
    """What was acknowledged beside what is stored (rows with `image_sha256` and `probabilities`) and what is right."""
    rows: dict[str, list[NDArray[np.float32]]] = {}
    for row in stored:
        rows.setdefault(row["image_sha256"].hex(), []).append(np.array(row["probabilities"], np.float32))
    right = {key_of(data): network.answer(data) for data in files}
    return Outcome(
        killed=killed,
        times=times,
        acknowledged=len(sent.acknowledged),
        stored=len(rows),
        doubled=sum(len(found) - 1 for found in rows.values()),
        lost=len(sent.acknowledged.keys() - rows.keys()),
        different=sum(
            not all(np.array_equal(one, right[key]) for one in rows.get(key, []))
            or not np.allclose(told, right[key], rtol=1e-6, atol=0)  # an answer shows seven digits
            for key, told in sent.acknowledged.items()
        ),
        refusals=sent.refusals,
    )


def stored_rows(database_url: str, owner_email: str) -> list[Mapping[str, Any]]:
    """Every result of an account, straight from the table."""
    query = (
        "SELECT image_sha256, probabilities FROM predictions JOIN users ON users.id = owner_id WHERE users.email = $1"
    )

    async def ask() -> list[Mapping[str, Any]]:
        connection = await asyncpg.connect(database_url)
        try:
            return list(await connection.fetch(query, owner_email))
        finally:
            await connection.close()

    return asyncio.run(ask())


def at_random_moments(fault: Callable[[], None], times: int, within_s: float, seed: int) -> threading.Thread:
    """A thread that calls `fault` so often, in as many equal spans of `within_s` somewhere in each."""
    moments = random.Random(seed)

    def run() -> None:
        start = time.monotonic()
        for number in range(times):
            moment = (number + moments.uniform(0.2, 0.8)) * within_s / times
            time.sleep(max(0.0, start + moment - time.monotonic()))
            fault()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
