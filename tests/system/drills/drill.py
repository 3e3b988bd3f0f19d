"""One drill: a stream of images, a fault at random moments, and what the database says of it afterwards."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg
import numpy as np
from numpy.typing import NDArray

from tests.system.drills import network
from tests.system.drills.stream import Sent, images, send
from tests.system.drills.ways import Http, Way
from tests.system.stack import Stack

Probabilities = NDArray[np.float32]
IMAGES = 2_000
RATE = 250.0  # images/s: the stream lasts for eight seconds and more, in which parts die and come back
PATIENCE_S = 120.0


def run(
    stack: Stack, what: str, fault: Callable[[], None], *, times: int, way: Callable[[Stack, str], Way] = Http
) -> Outcome:
    """Send `IMAGES` distinct images while `fault` is called so often; returns when the stack is ready again."""
    files = images(IMAGES, seed=sum(what.encode()))
    door = way(stack, "".join(letter if letter.isalnum() else "-" for letter in what.lower()))
    faults = _at_random_moments(fault, times, IMAGES / RATE, seed=7)
    sent = send(door, files, rate=RATE, patience_s=PATIENCE_S)
    faults.join()
    stack.wait_for(200, 60)
    url = stack.environment.get("DERMSERVE_DATABASE_URL") or (stack.state_dir / "database.url").read_text()
    return _compare(
        what, times, sent, {door.key(data): network.answer(data) for data in files}, _stored(url, door.rows)
    )


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

    def check(self) -> None:
        """Fail unless every image is stored exactly once, with the answer it gets without faults."""
        assert (self.doubled, self.lost, self.different) == (0, 0, 0)
        assert self.acknowledged == self.stored == IMAGES


def _compare(
    killed: str, times: int, sent: Sent, right: Mapping[str, Probabilities], stored: Sequence[tuple[str, list[float]]]
) -> Outcome:
    """What was acknowledged beside what is stored (key and probabilities of each row) and what is right."""
    rows: dict[str, list[Probabilities]] = {}
    for key, probabilities in stored:
        rows.setdefault(key, []).append(np.array(probabilities, np.float32))
    return Outcome(
        killed=killed,
        times=times,
        acknowledged=len(sent.acknowledged),
        stored=len(rows.keys() & right.keys()),
        doubled=sum(len(rows[key]) - 1 for key in rows.keys() & right.keys()),
        lost=len(sent.acknowledged.keys() - rows.keys()),
        different=sum(
            not all(np.array_equal(one, right[key]) for one in rows.get(key, []))
            or not (told is None or np.allclose(told, right[key], rtol=1e-6, atol=0))  # an answer shows seven digits
            for key, told in sent.acknowledged.items()
        ),
        refusals=sent.refusals,
    )


def _stored(database_url: str, query: str) -> list[tuple[str, list[float]]]:
    async def ask() -> list[tuple[str, list[float]]]:
        connection = await asyncpg.connect(database_url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def _at_random_moments(fault: Callable[[], None], times: int, within_s: float, seed: int) -> threading.Thread:
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
