"""How many images this process holds at once, in number and in bytes, and whose: bounded in all and fair between keys."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final
from uuid import UUID

from dermserve import image
from dermserve.backlog import Backlog
from dermserve.errors import Overloaded
from frontend.access import Caller

_MACHINE_SHARE: Final = 0.75  # of everything; the rest is for people alone
_BATCH_SHARE: Final = 0.25  # of the requests that machines may have; never so many that none is left for their images
_AHEAD_S: Final = 8.0  # of work that batches may have under way; each image has a deadline at the model server
_ALWAYS: Final = 16  # images that keep any model server busy
_KEYS_SHARE: Final = 7 / 8  # of what machines may hold, divided among the keys; the rest lets one more in at once


@dataclass
class _Holder:
    """What one key holds; all people with single images are one holder, too. `waiting`: for a place or for room."""

    images: int = 0
    size: int = 0
    batches: int = 0
    waiting: int = 0

    @property
    def active(self) -> bool:
        return bool(self.images or self.batches or self.waiting)


@dataclass(frozen=True)
class _Waiter:
    holder: _Holder
    arrival: int
    attempt: Callable[[], bool]
    admitted: asyncio.Future[None]


class Intake:
    """Bounds the images that this process holds at once; past the bound a sender is told to come back.

    Machines are told so at three quarters of it, so that a gateway emptying its backlog never shuts people out, and a key
    at its part of what machines may have: seven eighths, divided by the keys that hold or want something at this moment.
    The images of a batch wait for what they need instead of being refused.
    """

    def __init__(self, *, max_bytes: int = 256 * 1024 * 1024, max_requests: int = 256) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._bytes = 0
        self._requests = 0
        self._batches = 0
        self._holders: dict[UUID | None, _Holder] = {}
        self._waiting: list[_Waiter] = []
        self._arrivals = count()
        self._backlog = Backlog()
        self.overdrawn: Claim | None = None

    @contextmanager
    def claim(self, caller: Caller, *, batch: bool = False) -> Iterator[Claim]:
        """What one image of a caller will hold, given back on leaving. Images of a batch count as a machine's."""
        claim = Claim(self, _batch_key(caller) if batch else caller.key_id)
        try:
            with self._backlog.of(1, bulk=caller.machine):
                yield claim
        finally:
            claim.leave()

    @contextmanager
    def batch(self, caller: Caller) -> Iterator[None]:
        """One request with many images; each of them has a claim of its own.

        Raises:
            Overloaded: there are too many such requests, or too many of this key.
        """
        key = _batch_key(caller)
        most, holder = _BATCH_SHARE * _MACHINE_SHARE * self._max_requests, self._holder(key)
        if self._batches >= most or holder.batches >= math.ceil(self._part(most, holder)):
            self._forget(key)
            raise self.full(key)
        self._batches += 1
        holder.batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            holder.batches -= 1
            self._forget(key)
            self._wake()

    def check_room(self, *, machine: bool) -> None:
        """Return if one more image may be received.

        Raises:
            Overloaded: too many are held already.
        """
        if self._requests >= (_MACHINE_SHARE if machine else 1.0) * self._max_requests:
            raise Overloaded(retry_after=self._backlog.retry_after_s(bulk=machine))

    def full(self, key: UUID | None) -> Overloaded:
        """The refusal of an image, with the time after which what is ahead of it will be done."""
        return Overloaded(retry_after=self._backlog.retry_after_s(bulk=key is not None))

    def keeps_pace(self) -> bool:
        """Whether so few images are under way that one more of a batch will be done well within its deadline."""
        return self._requests < max(_ALWAYS, self._backlog.images_in(_AHEAD_S))

    def take_place(self, key: UUID | None) -> bool:
        """Whether there was a place for one more image; it is taken."""
        most, holder = _share(key) * self._max_requests, self._holder(key)
        if self._requests >= most or (key is not None and holder.images >= math.ceil(self._part(most, holder))):
            self._forget(key)
            return False
        self._requests += 1
        holder.images += 1
        return True

    def take(self, key: UUID | None, size: int, *, overdraw: bool) -> bool:
        """Whether there was room for so many bytes; it is taken. `overdraw`: of what machines leave to people, too."""
        most, holder = (1.0 if overdraw else _share(key)) * self._max_bytes, self._holder(key)
        # However many keys there are, one image of each must fit; a form holds it twice.
        own = max(2 * image.MAX_BYTES, self._part(most, holder))
        if self._bytes + size > most or (key is not None and not overdraw and holder.size + size > own):
            return False
        self._bytes += size
        holder.size += size
        return True

    def give_back(self, key: UUID | None, *, images: int = 0, size: int = 0) -> None:
        holder = self._holder(key)
        self._requests -= images
        holder.images -= images
        self._bytes -= size
        holder.size -= size
        self._forget(key)
        self._wake()

    async def until(self, key: UUID | None, attempt: Callable[[], bool]) -> None:
        """Return when `attempt` has succeeded; of those who wait, the key that holds the fewest images comes first."""
        if attempt():
            return
        holder = self._holder(key)
        waiter = _Waiter(holder, next(self._arrivals), attempt, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        holder.waiting += 1
        try:
            await waiter.admitted
        finally:
            holder.waiting -= 1
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            self._forget(key)

    def _wake(self) -> None:
        for waiter in sorted(self._waiting, key=lambda one: (one.holder.images, one.arrival)):
            if not waiter.admitted.done() and waiter.attempt():
                self._waiting.remove(waiter)
                waiter.admitted.set_result(None)

    def _holder(self, key: UUID | None) -> _Holder:
        return self._holders.setdefault(key, _Holder())

    def _forget(self, key: UUID | None) -> None:
        if key in self._holders and not self._holders[key].active:
            del self._holders[key]

    def _part(self, whole: float, holder: _Holder) -> float:
        others = sum(one.active for key, one in self._holders.items() if key is not None and one is not holder)
        return _KEYS_SHARE * whole / (1 + others)


class Claim:
    """The place and the bytes that one image holds of an intake."""

    def __init__(self, intake: Intake, key: UUID | None) -> None:
        self._intake = intake
        self._key = key
        self._placed = False
        self._size = 0

    def enter(self) -> None:
        """Take a place.

        Raises:
            Overloaded: there is none.
        """
        if not self._enter():
            raise self._intake.full(self._key)

    async def entered(self) -> None:
        """Take a place as soon as there is one and the model server has not fallen behind."""
        await self._intake.until(self._key, lambda: self._intake.keeps_pace() and self._enter())

    def add(self, size: int) -> None:
        """Hold so many bytes more.

        Raises:
            Overloaded: there is no room.
        """
        if not self._add(size, overdraw=False):
            raise self._intake.full(self._key)

    async def added(self, size: int) -> None:
        """Hold so many bytes more as soon as there is room.

        One claim at a time may go beyond the share of machines: were all room taken by images that have not arrived whole,
        each would wait for the others for good.
        """
        await self._intake.until(self._key, lambda: self._add(size, overdraw=False) or self._overdraw(size))

    def reduce_to(self, size: int) -> None:
        """Hold only so many bytes."""
        held, self._size = self._size, size
        self._intake.give_back(self._key, size=held - size)

    def leave(self) -> None:
        """Give everything back."""
        if self._intake.overdrawn is self:
            self._intake.overdrawn = None
        held, self._size = self._size, 0
        placed, self._placed = self._placed, False
        self._intake.give_back(self._key, images=int(placed), size=held)

    def _enter(self) -> bool:
        self._placed = self._intake.take_place(self._key)
        return self._placed

    def _add(self, size: int, *, overdraw: bool) -> bool:
        taken = self._intake.take(self._key, size, overdraw=overdraw)
        self._size += size if taken else 0
        return taken

    def _overdraw(self, size: int) -> bool:
        if self._intake.overdrawn not in (None, self) or not self._add(size, overdraw=True):
            return False
        self._intake.overdrawn = self
        return True


def _share(key: UUID | None) -> float:
    return 1.0 if key is None else _MACHINE_SHARE


def _batch_key(caller: Caller) -> UUID:
    return caller.key_id or caller.user_id
