"""Group commit: the rows of requests that wait at the same time share one transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from dermserve.errors import DermserveError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_LARGEST: Final = 128


class Grouped(Generic[Item, Outcome]):
    """Calls `work` with everything that came while it was busy; each caller gets the outcome of its own item.

    Nothing waits for company: an item that comes alone goes alone.

    Args:
        work: does one group whole or not at all, and returns the outcomes in its order. It must be repeatable.
        at_once: groups under way; more than one, so that a group which waits for a lock does not hold up all.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]], *, at_once: int = 2) -> None:
        self._work = work
        self._at_once = at_once
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Outcome:
        """The outcome of `item`, once its group is done.

        Raises:
            DermserveError: the whole group failed, as when the database is away; nothing is known to be stored.
            Exception: what `work` raises for this item alone.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, outcome))
        if len(self._running) < self._at_once:
            task = asyncio.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await outcome

    async def drain(self) -> None:
        """Return when every item that was taken on has its outcome."""
        while self._running:
            await asyncio.wait(self._running)

    async def _run(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGEST))]
            try:
                await self._settle(group)
            finally:
                for _, outcome in group:
                    outcome.cancel()  # only where this task was cancelled is there one without an outcome

    async def _settle(self, group: Sequence[tuple[Item, asyncio.Future[Outcome]]]) -> None:
        try:
            outcomes = await self._work([item for item, _ in group])
        except Exception as error:
            if len(group) > 1 and not isinstance(error, DermserveError):
                for one in group:  # one of them is bad; the others are to know nothing of it
                    await self._settle([one])
                return
            for _, outcome in group:
                if not outcome.done():  # its caller may have gone
                    outcome.set_exception(error)
            return
        for (_, outcome), found in zip(group, outcomes, strict=True):
            if not outcome.done():
                outcome.set_result(found)
