"""The outbox: which results are on their way to which destination, claimed by workers, marked, counted and reaped.

A worker claims what is due by moving `due_at` on past the longest time that sending takes; where it dies, the delivery is
due again then. Any number of workers may run: rows that one holds, others skip. What was sent but not marked is sent
again, so that nothing is lost; by the names in it (`reports/identity.py`) the receiver can tell.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Update, delete, exists, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from frontend.database import Database
from frontend.models import Delivery, Destination, Instance, Prediction

LEASE: Final = timedelta(minutes=3)
"""Longer than one attempt may take, whatever the destination does."""
PATIENCE: Final = timedelta(days=7)
KEPT: Final = timedelta(days=30)
"""How long delivered rows are kept, so that it can be said what was sent."""
FIRST_S: Final = 5.0
LONGEST_S: Final = 3600.0
_JITTER: Final = 0.25
_STEP: Final = 1000
_NEVER: Final[ColumnElement[datetime]] = literal_column("'infinity'::timestamptz")
_ERROR_MAX: Final = 200


class Kind(StrEnum):
    """How a destination is reached, and what it is sent."""

    C_STORE = "c-store"
    """A DICOM node: the structured report."""
    STOW = "stow-rs"
    """A DICOMweb server: the structured report."""
    WEBHOOK = "webhook"
    """A signed message in JSON."""
    FHIR = "fhir"
    """The same with a FHIR DiagnosticReport."""


@dataclass(frozen=True)
class Parcel:
    """One claimed delivery with all that its report is made from. `attempt` counts from 1 and tells claims apart."""

    id: int
    attempt: int
    since: datetime
    destination_id: UUID
    prediction: Prediction
    instance: Instance | None


class Figures(NamedTuple):
    """Deliveries on their way and given up, and the age in seconds of the oldest that is on its way."""

    pending: int
    failed: int
    oldest_s: float


def back_off(attempt: int) -> float:
    """Seconds until the next attempt after this many: doubled each time from 5 s to an hour, and up to a quarter more."""
    doubled = FIRST_S * 2.0 ** min(attempt - 1, 20)
    return min(doubled, LONGEST_S / (1 + _JITTER)) * (1 + _JITTER * random.random())  # noqa: S311  no secret


class Outbox:
    """Deliveries in the database. Every method may be repeated."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self) -> Sequence[Destination]:
        """Destinations for which something is due."""
        due = exists().where(Delivery.destination_id == Destination.id, *_DUE)
        async with self._database.transaction() as session:
            return (await session.scalars(select(Destination).where(due))).all()

    async def claim(self, destination: UUID, limit: int) -> Sequence[Parcel]:
        """Take at most `limit` due deliveries to a destination, those that wait longest first, for the time of `LEASE`."""
        chosen = (
            select(Delivery.id)
            .where(Delivery.destination_id == destination, *_DUE)
            .order_by(Delivery.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("chosen")
        )
        taken = (
            update(Delivery)
            .where(Delivery.id.in_(select(chosen.c.id)))
            .values(attempts=Delivery.attempts + 1, due_at=func.now() + LEASE)
            .returning(Delivery)
        )
        async with self._database.transaction() as session:
            rows = (await session.scalars(taken)).all()
            found = select(Prediction, Instance).outerjoin(Instance, Instance.prediction_id == Prediction.id)
            found = found.where(Prediction.id.in_([row.prediction_id for row in rows]))
            results = {result.id: (result, image) for result, image in (await session.execute(found)).all()}
        return [
            Parcel(row.id, row.attempts, row.since, destination, *results[row.prediction_id])
            for row in rows
            if row.prediction_id in results
        ]

    async def delivered(self, parcel: Parcel) -> None:
        """It has arrived. With the last delivery of a result goes what was kept of its patient, in one transaction."""
        result = parcel.prediction.id
        # Taken first: of two last deliveries at the same time, the second must see what the first has marked.
        held = select(Instance.prediction_id).where(Instance.prediction_id == result).with_for_update()
        mark = update(Delivery).where(Delivery.id == parcel.id, Delivery.delivered_at.is_(None))
        async with self._database.transaction() as session:
            await session.execute(held)
            await session.execute(mark.values(delivered_at=func.now(), failed_at=None, error=None))
            await session.execute(erase_patients(Instance.prediction_id == result))

    async def postponed(self, parcel: Parcel, error: str, *, wait_s: float) -> bool:
        """It could not be sent for now; after `PATIENCE` it is given up. Returns whether it is tried again.

        `error` stands in lists that operators read: no word of a patient, and nothing that the destination chose.
        """
        values = {"due_at": func.now() + timedelta(seconds=wait_s), "error": error[:_ERROR_MAX]}
        again = _of(parcel).where(Delivery.since > func.now() - PATIENCE).values(**values).returning(Delivery.id)
        async with self._database.transaction() as session:
            if await session.scalar(again) is not None:
                return True
            await session.execute(_give_up(parcel, f"given up after {PATIENCE.days} days: {error}"))
        return False

    async def failed(self, parcel: Parcel, error: str) -> None:
        """The destination refused it for good; it stays to be seen, and may be sent again by command."""
        async with self._database.transaction() as session:
            await session.execute(_give_up(parcel, error))

    async def figures(self) -> Figures:
        """Of all organisations together."""
        failed = Delivery.failed_at.is_not(None)
        query = select(
            func.count().filter(~failed),
            func.count().filter(failed),
            func.coalesce(func.extract("epoch", func.now() - func.min(Delivery.since).filter(~failed)), 0),
        ).where(Delivery.delivered_at.is_(None))
        async with self._database.transaction() as session:
            pending, given_up, oldest = (await session.execute(query)).one()
        return Figures(pending, given_up, max(float(oldest), 0.0))

    async def reap(self) -> int:
        """Delete rows that were delivered long ago, and what is kept of patients without a report left to send.

        Returns how many rows were deleted.
        """
        old = select(Delivery.id).where(Delivery.delivered_at < func.now() - KEPT).limit(_STEP)
        total = 0
        while True:
            async with self._database.transaction() as session:
                gone = (
                    await session.scalars(delete(Delivery).where(Delivery.id.in_(old)).returning(Delivery.id))
                ).all()
            total += len(gone)
            if len(gone) < _STEP:
                break
        async with self._database.transaction() as session:
            await session.execute(erase_patients())
        return total


async def send_again(session: AsyncSession, destination: UUID) -> tuple[int, int]:
    """Make what was given up due now, with a week of attempts before it, and what waits for its next attempt.

    Returns how many of each. What a worker holds at the moment is left to it.
    """
    open_ = (Delivery.destination_id == destination, Delivery.delivered_at.is_(None))
    anew: dict[str, Any] = {"due_at": func.now(), "attempts": 0}
    failed = update(Delivery).where(*open_, Delivery.failed_at.is_not(None))
    revived = await session.scalars(
        failed.values(**anew, since=func.now(), failed_at=None, error=None).returning(Delivery.id)
    )
    waiting = update(Delivery).where(*open_, Delivery.failed_at.is_(None), Delivery.due_at > func.now() + LEASE)
    hurried = await session.scalars(waiting.values(**anew).returning(Delivery.id))
    return len(revived.all()), len(hurried.all())


_DUE: Final = (Delivery.delivered_at.is_(None), Delivery.failed_at.is_(None), Delivery.due_at <= func.now())


def _of(parcel: Parcel) -> Update:
    """The row as long as it is this claim's: another worker may have taken it since, or delivered it."""
    return update(Delivery).where(
        Delivery.id == parcel.id, Delivery.attempts == parcel.attempt, Delivery.delivered_at.is_(None)
    )


def _give_up(parcel: Parcel, error: str) -> Update:
    return _of(parcel).values(failed_at=func.now(), due_at=_NEVER, error=error[:_ERROR_MAX])


def erase_patients(*which: Any) -> Update:
    """Of results that no report is to be sent of any more, those included that were given up and may be sent again."""
    open_ = exists().where(Delivery.prediction_id == Instance.prediction_id, Delivery.delivered_at.is_(None))
    return update(Instance).where(*which, Instance.patient.is_not(None), ~open_).values(patient=None)
