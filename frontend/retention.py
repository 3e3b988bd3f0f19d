"""Results that an organisation no longer wants kept are deleted, once an hour, by whichever process comes first."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from sqlalchemy import delete, func, select

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


async def _expire_step(database: Database, organisation: Organisation) -> int:
    owners = select(User.id).where(User.organisation_id == organisation.id)
    old = (
        select(Prediction.id)
        .where(
            Prediction.owner_id.in_(owners),
            Prediction.created_at < func.now() - func.make_interval(0, 0, 0, organisation.retention_days),
        )
        .limit(_STEP)
    )
    async with database.transaction() as session:
        if not await session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
            return 0
        found = await session.scalars(delete(Prediction).where(Prediction.id.in_(old)).returning(Prediction.id))
        deleted = len(found.all())
        if deleted:
            await audit.append(session, Action.RESULTS_EXPIRED, actor=None, about=f"{organisation.id} {deleted}")
    return deleted


async def _expire_lesions(database: Database, organisation: Organisation) -> None:
    owners = select(User.id).where(User.organisation_id == organisation.id)
    query = delete(Lesion).where(
        Lesion.owner_id.in_(owners),
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
