"""Runs for ever: claims what is due, sends it, marks it. Any number of processes may."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from contextlib import suppress
from typing import Final
from uuid import UUID

from dermserve.errors import DermserveError
from frontend.database import Database
from frontend.delivery.courier import AT_ONCE, Courier, Couriers
from frontend.delivery.outcomes import RefusedError, TryLaterError
from frontend.metrics import Metrics
from frontend.outbox import Outbox, Parcel, back_off

_POLL_S: Final = 1.0
_TROUBLE_S: Final = 3.0
_REAP_S: Final = 3600.0
_REST_MAX_S: Final = 60.0
_FAREWELL_S: Final = 10.0
_log = logging.getLogger(__name__)


async def deliver_for_ever(
    couriers: Couriers, database: Database, metrics: Metrics, *, poll_s: float = _POLL_S
) -> None:
    """Send results out until cancelled; what is under way then has a moment to end, or is sent again by another worker."""
    worker = _Worker(Outbox(database), couriers, metrics)
    try:
        while True:
            wait_s = poll_s
            try:
                await worker.turn()
            except DermserveError as error:
                _log.warning("results wait to be sent: %s", error.code)
                wait_s = _TROUBLE_S
            except Exception:
                _log.exception("results wait to be sent")  # whatever it was, the next turn must try again
                wait_s = _TROUBLE_S
            await worker.pause(wait_s)
    finally:
        await worker.close()


class _Lane:
    """One destination in this process: how many are under way, and whether it is left alone for now.

    A destination that fails is left alone for longer each time, then asked with a single delivery, so that a long queue
    does not beat against a server that is down.
    """

    def __init__(self, courier: Courier) -> None:
        self.courier = courier
        self.under_way = 0
        self._failures = 0
        self._rests_until = 0.0

    @property
    def room(self) -> int:
        """How many more deliveries it may take now."""
        if time.monotonic() < self._rests_until:
            return 0
        return max((1 if self._failures else AT_ONCE) - self.under_way, 0)

    def answered(self) -> None:
        self._failures = 0
        self._rests_until = 0.0

    def failed(self, wait_s: float) -> None:
        self._failures += 1
        rest = min(back_off(self._failures), _REST_MAX_S)
        self._rests_until = max(self._rests_until, time.monotonic() + max(rest, wait_s))


class _Worker:
    def __init__(self, outbox: Outbox, couriers: Couriers, metrics: Metrics) -> None:
        self._outbox = outbox
        self._couriers = couriers
        self._metrics = metrics
        self._lanes: dict[UUID, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._reaped_at = float("-inf")

    async def turn(self) -> None:
        """Start as many deliveries as are due and as there is room for."""
        if time.monotonic() - self._reaped_at > _REAP_S:
            await self._outbox.reap()
            await self._dismiss()
            self._reaped_at = time.monotonic()
        self._freed.clear()
        for destination in await self._outbox.waiting():
            lane = self._lanes.get(destination.id)
            if lane is None:
                lane = self._lanes[destination.id] = _Lane(self._couriers.to(destination))
            if lane.room:
                for parcel in await self._outbox.claim(destination.id, lane.room):
                    lane.under_way += 1
                    task = asyncio.create_task(self._deliver(lane, destination.kind, parcel))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def pause(self, seconds: float) -> None:
        """Return when something has ended and made room, or after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._freed.wait()

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_FAREWELL_S)
        for task in self._tasks:
            task.cancel()
        for lane in self._lanes.values():
            await lane.courier.close()

    async def _dismiss(self) -> None:
        """Forget destinations to which nothing is under way; one that was removed is not asked for again."""
        for name, lane in list(self._lanes.items()):
            if not lane.under_way:
                del self._lanes[name]
                await lane.courier.close()

    async def _deliver(self, lane: _Lane, kind: str, parcel: Parcel) -> None:
        outcome = "postponed"
        try:
            outcome = await self._attempt(lane, parcel)
        except DermserveError as error:
            # Not marked: it is sent again after the lease, and the receiver knows it by its name.
            _log.warning("a delivery could not be marked: %s", error.code)
        except Exception:
            _log.exception("a delivery could not be marked")
        finally:
            lane.under_way -= 1
            self._metrics.delivered(kind, outcome)
            self._freed.set()

    async def _attempt(self, lane: _Lane, parcel: Parcel) -> str:
        try:
            await lane.courier.send(parcel)
        except RefusedError as error:
            lane.answered()
            await self._outbox.failed(parcel, error.reason)
            return "failed"
        except TryLaterError as error:
            lane.failed(error.wait_s)
            return await self._postpone(parcel, error.reason, error.wait_s)
        except Exception as error:
            # A fault of ours must not lose the delivery, and one result's must not stop the others. Libraries quote a
            # patient's data in their errors: what is logged is where it was.
            _log.error("a report could not be made or sent: %s", _place(error))
            return await self._postpone(parcel, f"not sent: {type(error).__name__}", 0.0)
        lane.answered()
        await self._outbox.delivered(parcel)
        return "delivered"

    async def _postpone(self, parcel: Parcel, reason: str, wait_s: float) -> str:
        again = await self._outbox.postponed(parcel, reason, wait_s=max(back_off(parcel.attempt), wait_s))
        return "postponed" if again else "failed"


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " ← ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
