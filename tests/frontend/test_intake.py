"""What a process holds at once, divided among those who want it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from uuid import uuid4

import pytest

from dermserve import image
from dermserve.errors import Overloaded
from frontend.access import Caller
from frontend.intake import Intake


def caller(*, machine: bool = True) -> Caller:
    return Caller(uuid4(), "gateway@clinic.example", key_id=uuid4() if machine else None)


def fill(intake: Intake, who: Caller, held: ExitStack) -> int:
    """Take places until one is refused; how many there were."""
    taken = 0
    while True:
        claim = held.enter_context(intake.claim(who))
        try:
            claim.enter()
        except Overloaded:
            return taken
        taken += 1


def test_keys_divide_what_machines_may_have_and_people_keep_theirs() -> None:
    intake = Intake(max_requests=256)
    with ExitStack() as held:
        assert fill(intake, caller(), held) == 168, "seven eighths of three quarters"
        assert fill(intake, caller(), held) == 24, "what was kept for another key"
        assert fill(intake, caller(machine=False), held) == 64
    with ExitStack() as held:
        first, second = caller(), caller()
        held.enter_context(intake.claim(first)).enter()
        held.enter_context(intake.claim(second)).enter()
        assert fill(intake, first, held) == fill(intake, second, held) == 83


def test_one_large_form_fits_however_many_keys_there_are() -> None:
    intake = Intake()
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(intake.claim(caller())).enter()
        claim = held.enter_context(intake.claim(caller()))
        claim.enter()
        claim.add(2 * image.MAX_BYTES)
        with pytest.raises(Overloaded):
            claim.add(1)


def test_who_holds_least_is_served_first() -> None:
    intake, order = Intake(max_requests=8), []
    greedy, modest = caller(), caller()

    async def image_of(who: Caller, name: str) -> None:
        with intake.claim(who, batch=True) as claim:
            await claim.entered()
            order.append(name)
            await asyncio.sleep(0.01)

    async def run() -> None:
        first = [asyncio.create_task(image_of(greedy, f"greedy {number}")) for number in range(12)]
        await asyncio.sleep(0)
        await asyncio.gather(*first, *(image_of(modest, f"modest {number}") for number in range(3)))

    asyncio.run(run())
    assert len(order) == 15
    assert {"modest 0", "modest 1", "modest 2"} <= set(order[:9]), order


def test_waiting_that_is_given_up_leaves_nothing_behind() -> None:
    intake = Intake(max_requests=2)

    async def run() -> None:
        with intake.claim(caller(), batch=True) as one:
            await one.entered()

            async def wait() -> None:
                with intake.claim(caller(), batch=True) as other:
                    await other.entered()
                    await asyncio.sleep(10)

            waiting = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0.01)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())
    assert (intake._requests, intake._bytes, intake._holders, intake._waiting) == (0, 0, {}, [])
