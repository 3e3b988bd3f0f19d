"""The search for the number of requests at once, against servers made of a formula."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from dermserve.predict.pace import Climb, Pace


def settle(rate: Callable[[int], float], *, most: int = 256, epochs: int = 400, room: int | None = None) -> Climb:
    """Feed epochs of a server that does `rate(limit)` images/s and refuses beyond `room` at once."""
    climb, now = Climb(most), 0.0
    for _ in range(epochs):
        now += 1.0
        if room is not None and climb.limit > room:
            climb.refused(now)
        else:
            climb.judge(now, rate(climb.limit), climb.limit / rate(climb.limit), full=True)
    return climb


@pytest.mark.parametrize("enough", [1, 4, 10, 40, 150])
def test_it_settles_at_about_as_many_as_pay(enough: int) -> None:
    climb = settle(lambda limit: 100.0 * min(limit, enough) / enough)
    assert enough / 2 <= climb.limit <= max(4, 2 * enough)


def test_it_never_exceeds_what_was_asked_for() -> None:
    assert settle(lambda limit: 1000.0 * limit, most=7).limit == 7


def test_it_finds_a_server_that_became_faster_and_one_that_became_slower() -> None:
    climb, now, enough = settle(lambda limit: 10.0 * min(limit, 8)), 1000.0, 32
    before = climb.limit
    for _ in range(400):
        now += 1.0
        climb.judge(now, 10.0 * min(climb.limit, enough), 0.1, full=True)
    assert climb.limit > 1.5 * before
    for _ in range(800):
        now += 1.0
        climb.judge(now, 10.0 * min(climb.limit, 4), 0.1, full=True)
    assert climb.limit <= 8


def test_a_refusal_halves_it_at_once_and_it_stays_where_there_is_room() -> None:
    climb = Climb(256)
    climb.limit = 64
    climb.refused(0.0)
    assert climb.limit == 32
    assert 10 <= settle(lambda limit: 10.0 * limit, room=20, epochs=1000).limit <= 20


def test_answers_that_come_near_the_deadline_lower_it() -> None:
    climb = Climb(256)
    climb.limit = 64
    climb.judge(0.0, 3.0, 20.0, full=True)
    assert climb.limit == 48


def test_files_that_come_slowly_are_no_reason_to_ask_for_more() -> None:
    climb = Climb(256)
    for now in range(100):
        climb.judge(float(now), 5.0, 0.1, full=False)
    assert climb.limit == 4


def test_no_more_than_the_limit_are_sent_and_the_oldest_image_first() -> None:
    async def run() -> list[int]:
        pace, order = Pace(2), list[int]()

        async def send(position: int) -> None:
            sent = await pace.enter(position)
            order.append(position)
            assert pace.flying <= 2
            await asyncio.sleep(0.001)
            pace.answered(sent)

        await asyncio.gather(*(send(position) for position in (5, 4, 3, 2, 1, 0)))
        assert pace.flying == 0
        return order

    assert asyncio.run(run()) == [5, 4, 0, 1, 2, 3]


def test_one_who_gives_up_waiting_leaves_its_place() -> None:
    async def run() -> None:
        pace = Pace(1)
        sent = await pace.enter(0)
        waiting = asyncio.create_task(pace.enter(1))
        await asyncio.sleep(0)
        waiting.cancel()
        pace.answered(sent)
        await asyncio.gather(waiting, return_exceptions=True)
        pace.answered(await asyncio.wait_for(pace.enter(2), 1))
        assert pace.flying == 0

    asyncio.run(run())


def test_those_who_are_refused_together_halve_it_once_and_all_wait_as_long_as_they_were_told() -> None:
    async def run() -> None:
        pace = Pace(64)
        sent = [await pace.enter(position) for position in range(4)]
        assert pace.limit == 4
        began = time.monotonic()
        for one in sent:
            pace.refused(one, 0.3)
        assert (pace.limit, pace.flying) == (2, 0)
        again = await pace.enter(4)
        assert 0.29 <= time.monotonic() - began < 1.0
        pace.refused(again, 0.0)
        assert pace.limit == 1

    asyncio.run(run())
