"""Send what the journal holds through a door, and bring every outcome into the journal and the tables.

Images are sent as soon as there is room, whatever became of those before them; the journal takes their outcomes as they
come, and the tables get them in order. Only what is committed is written, so a kill at any moment costs at most the images
that were in flight, and they are sent again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

from dermserve.errors import (
    Conflict,
    DermserveError,
    ImageError,
    ImageTooLarge,
    InferenceUnavailable,
    Overloaded,
    RateLimited,
    Unavailable,
    UnreadableFile,
)
from dermserve.predict import files
from dermserve.predict.doors import Door, is_away
from dermserve.predict.journal import Journal
from dermserve.predict.outcome import Done, Item, Outcome, Refusal, Stamp
from dermserve.predict.pace import Pace
from dermserve.predict.patience import Patience, ServerAway

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_GATHER_S: Final = 0.05
_GROUP: Final = 1000
_FAILING: Final = 64

T = TypeVar("T")


class Sink(Protocol):
    """What a scored image is handed to once it is in the journal."""

    def written(self, batch: list[Done]) -> None:
        """Runs in the journal's thread, after the commit."""


class Feed(Protocol):
    """Where images come from besides the journal, while the run lasts."""

    async def more(self, in_journal: Callable[..., Awaitable[Any]]) -> int | None:
        """Wait for new images in the journal.

        Args:
            in_journal: calls a function in the thread that may use the journal.

        Returns:
            The position behind which they stand; None where there will be none.
        """


class Scoring:
    """One run.

    Args:
        door: the server.
        journal: what is to be done and was done; used from a thread of its own.
        pace: how many at once.
        patience: how long to wait for the server.
        sink: makes the tables.
        feed: None where the journal holds all there is.
    """

    def __init__(
        self, door: Door, journal: Journal, pace: Pace, *, patience: Patience, sink: Sink, feed: Feed | None = None
    ) -> None:
        self._door, self._journal, self._pace, self._patience = door, journal, pace, patience
        self._sink, self._feed = sink, feed
        self._reader = files.Reader()
        self._open: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._arrived: asyncio.Queue[Done | None] = asyncio.Queue(2 * _GROUP)
        self._stopping = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = ThreadPoolExecutor(1, "journal")
        self._on_wire: set[int] = set()
        self._failing: set[int] = set()

    def stop(self) -> None:
        """Send no further image; `run` returns when what is on the wire is answered. A second call does not wait for it."""
        again = self._stopping.is_set()
        self._stopping.set()
        self._room.set()
        for position, task in self._open.items():
            if again or position not in self._on_wire:
                task.cancel()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    async def in_journal(self, work: Callable[..., T], *arguments: object) -> T:
        """Call something in the one thread that may use the journal."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def run(self) -> None:
        """Score everything.

        Raises:
            DermserveError: the run cannot go on; what arrived before is in the journal and the tables.
            OSError: a table cannot be written.
        """
        writer = asyncio.create_task(self._write())
        writer.add_done_callback(self._fail_with)
        try:
            await self._until_failure(self._send_all())
        finally:
            for task in self._open.values():
                task.cancel()
            await asyncio.gather(*self._open.values(), return_exceptions=True)
            if not writer.done():
                await self._arrived.put(None)
            await asyncio.gather(writer, return_exceptions=True)
            self._thread.shutdown()
            if self._failure.done():
                self._failure.exception()  # seen
        if (failure := writer.exception()) is not None:
            raise failure

    async def _until_failure(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._failure], return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _fail_with(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)

    async def _send_all(self) -> None:
        after = 0
        while not self._stopping.is_set():
            page = await self.in_journal(self._journal.pending, after)
            for item in page:
                after = item.position
                await self._has_room()
                if self._stopping.is_set():
                    break
                if item.position not in self._open:
                    self._start(item)
            if not page:
                behind = await self._more(self._feed) if self._feed is not None else None
                if behind is None:
                    break
                after = behind
        while self._open:
            await asyncio.wait(self._open.values())
            await asyncio.sleep(0)  # their callbacks

    async def _more(self, feed: Feed) -> int | None:
        more, stop = asyncio.ensure_future(feed.more(self.in_journal)), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([more, stop], return_when=asyncio.FIRST_COMPLETED)
            return None if self._stopping.is_set() else more.result()
        finally:
            more.cancel()
            stop.cancel()
            await asyncio.gather(more, stop, return_exceptions=True)

    async def _has_room(self) -> None:
        """One image in two is read ahead of its turn on the wire, and one that fails again and again keeps no other back."""
        while not self._stopping.is_set():
            ahead = self._pace.limit // 2 + min(len(self._failing), _FAILING)
            if len(self._open) < self._pace.limit + ahead:
                return
            self._room.clear()
            await self._room.wait()

    def _start(self, item: Item) -> None:
        task = self._open[item.position] = asyncio.create_task(self._one(item))
        task.add_done_callback(lambda done: self._end(item.position, done))

    def _end(self, position: int, task: asyncio.Task[None]) -> None:
        del self._open[position]
        self._failing.discard(position)
        self._room.set()
        self._fail_with(task)

    async def _one(self, item: Item) -> None:
        while True:
            try:
                return await self._once(item)
            except files.FolderGone:
                if self._feed is None:
                    raise
            await asyncio.sleep(_LONGEST_PAUSE_S)  # a drop folder comes back

    async def _once(self, item: Item) -> None:
        stamp: Stamp | None = None
        try:
            async with self._reader.reading(item) as content:
                stamp = content.stamp
                outcome = await self._score(item, content)
        except (UnreadableFile, ImageTooLarge) as error:
            outcome = files.refusal(error)
        await self._arrived.put(Done(item.position, outcome, stamp))

    async def _score(self, item: Item, content: files.Content) -> Outcome:
        pause_s, failing_since, answers = _FIRST_PAUSE_S, 0.0, 0
        while True:
            try:
                return await self._attempt(item.position, content)
            except ServerAway:
                raise
            except (RateLimited, Unavailable) as error:
                if _is_busy(error):
                    continue  # it waits for its place on the wire
                if not failing_since:
                    failing_since, answers = time.monotonic(), self._patience.answers
                    self._failing.add(item.position)
                    self._room.set()
                others = self._patience.answers > answers
                if others and not is_away(error) and time.monotonic() - failing_since >= self._patience.image_s:
                    return Refusal.of(error, passing=True)  # it is this image, and the run is not to end because of it
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_s)  # noqa: S311  jitter, not a secret
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _attempt(self, position: int, content: files.Content) -> Outcome:
        """One request; raises what passes by itself, ServerAway where it has lasted too long, and what ends the run."""
        sent = await self._pace.enter(position)
        self._on_wire.add(position)
        self._patience.sending()
        try:
            outcome: Outcome = await self._door.score(content.data, content.stamp.sha256)
        except (ImageError, Conflict) as error:
            outcome = Refusal.of(error)
        except (RateLimited, Unavailable) as error:
            if isinstance(error, InferenceUnavailable) and not is_away(error):
                self._pace.gone()  # it is there and fails on this image: it has room for others
            else:
                self._pace.refused(sent, None if is_away(error) else error.retry_after)
            self._patience.failed(error, busy=isinstance(error, RateLimited | Overloaded))
            raise
        except BaseException:
            self._pace.gone()
            raise
        finally:
            self._on_wire.discard(position)
        self._pace.answered(sent)
        self._patience.answered()
        return outcome

    async def _write(self) -> None:
        over = False
        while not over:
            batch = [await self._arrived.get()]
            if batch[0] is not None:
                await asyncio.sleep(_GATHER_S)  # one commit for all that arrive meanwhile
            while len(batch) < _GROUP and not self._arrived.empty():
                batch.append(self._arrived.get_nowait())
            over = None in batch
            await self.in_journal(self._commit, [done for done in batch if done is not None])

    def _commit(self, batch: list[Done]) -> None:
        if batch:
            self._journal.record(batch)
            self._sink.written(batch)


def _is_busy(error: DermserveError) -> bool:
    """Whether the server had no room; an image that it took and did not answer in time may be at fault itself."""
    return isinstance(error, RateLimited) or (isinstance(error, Overloaded) and error.detail == error.title)
