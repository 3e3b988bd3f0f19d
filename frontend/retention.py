"""Results that an organisation no longer wants kept are deleted, once an hour, by whichever process comes first."""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dermserve.errors import DermserveError
from frontend import audit
from frontend.audit import Action
from frontend.database import Database
from frontend.models import Lesion, Organisation, Prediction, User

_EVERY_S: Final = 3600.0
_LOCK: Final = 0x72656170  # "reap": one process at a time is enough
_STEP: Final = 1000  # rows of one transaction: a stream that is being stored does not wait for a whole archive
_log = logging.getLogger(__name__)


async def expire(database: Database) -> int:
    """Delete every result that is older than its owner's organisation keeps them; returns how many.

    Lesions as old go with their last result: their names are what somebody wrote about a patient.
    """
    async with database.transaction() as session:
        limited = (await session.scalars(select(Organisation).where(Organisation.retention_days.is_not(None)))).all()
    total = 0
    for organisation in limited:
        while (deleted := await _expire_step(database, organisation)) > 0:
            total += deleted
        await _expire_lesions(database, organisation)
    return total


async def due(session: AsyncSession, owners: Select[UUID], days: int | None) -> int:
    """How many results of these accounts would be deleted at once if they were kept for so many days (None: for good)."""
    if days is None:
        return 0
    return await session.scalar(select(func.count()).select_from(Prediction).where(*_old(owners, days))) or 0


def members(organisation_id: UUID) -> Select[UUID]:
    """The accounts of an organisation."""
    return select(User.id).where(User.organisation_id == organisation_id)


def _old(owners: Select[UUID], days: int | None) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Prediction.owner_id.in_(owners), Prediction.created_at < func.now() - func.make_interval(0, 0, 0, days)


async def _expire_step(database: Database, organisation: Organisation) -> int:
    old = select(Prediction.id).where(*_old(members(organisation.id), organisation.retention_days)).limit(_STEP)
    async with database.transaction() as session:
        if not await session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
            return 0
        found = await session.scalars(delete(Prediction).where(Prediction.id.in_(old)).returning(Prediction.id))
        deleted = len(found.all())
        if deleted:
            await audit.append(session, Action.RESULTS_EXPIRED, actor=None, about=f"{organisation.id} {deleted}")
    return deleted


async def _expire_lesions(database: Database, organisation: Organisation) -> None:
    query = delete(Lesion).where(
        Lesion.owner_id.in_(members(organisation.id)),
        Lesion.created_at < func.now() - func.make_interval(0, 0, 0, organisation.retention_days),
        ~select(Prediction.id).where(Prediction.lesion_id == Lesion.id).exists(),
    )
    async with database.transaction() as session:
        await session.execute(query)


async def expire_for_ever(database: Database) -> None:
    """Call `expire` now and every hour until cancelled; a database that is away is tried again in the next."""
    while True:
        try:
            await expire(database)
        except DermserveError as error:
            _log.warning("expired results stay for now: %s", error.code)
        except Exception:
            _log.exception("expired results stay for now")  # whatever it was, the next hour must try again
        await asyncio.sleep(_EVERY_S)
