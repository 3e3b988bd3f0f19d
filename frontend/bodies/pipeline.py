"""Parts of one request: read one after another, worked on side by side while later ones still come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from dermserve import image
from dermserve.errors import DermserveError
from frontend.access import Caller
from frontend.bodies.stream import PartRefused, image_of
from frontend.intake import Intake

AT_ONCE: Final = 64
"""Images of one request that are being scored: more than fill Triton, fewer than its queue holds."""

_log = logging.getLogger(__name__)


class Pipeline:
    """Leaving it waits for everything that was begun, however it is left: what is under way is stored in any case.

    `limit`: bytes of one part.
    """

    def __init__(self, intake: Intake, caller: Caller, *, limit: int = image.MAX_BYTES) -> None:
        self._intake = intake
        self._caller = caller
        self._limit = limit
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def put(
        self,
        chunks: AsyncIterator[bytes],
        work: Callable[[bytes], Awaitable[None]],
        refuse: Callable[[DermserveError], None],
    ) -> None:
        """Read a part as soon as there is room for it and begin to work on it; returns when it was read.

        Args:
            chunks: the part's bytes.
            work: is given them; they count as held until it is done.
            refuse: is told why the part came to nothing, by its reading or by `work`.

        Raises:
            DermserveError: the body as a whole is refused.
        """
        await self._slots.acquire()
        try:
            with ExitStack() as held:
                claim = held.enter_context(self._intake.claim(self._caller, batch=True))
                await claim.entered()
                data = await image_of(chunks, claim, limit=self._limit)
                task = asyncio.create_task(self._run(held.pop_all(), work, refuse, data))
        except PartRefused as refused:
            self._slots.release()
            refuse(refused.error)
        else:
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()

    @staticmethod
    async def _run(
        held: ExitStack,
        work: Callable[[bytes], Awaitable[None]],
        refuse: Callable[[DermserveError], None],
        data: bytes,
    ) -> None:
        try:
            with held:
                await work(data)
        except DermserveError as error:
            refuse(error)
        except Exception:
            _log.exception("unhandled error in a part of a request")
            refuse(DermserveError())
