"""Deletions that a restored backup has to be told again: from the audit of the newer database into the older one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select

from dermserve.errors import RequestInvalid
from frontend.audit import Action
from frontend.database import Database
from frontend.models import ApiKey, AuditEntry, Lesion, PasswordReset, Prediction, Sender, User, WebSession
from frontend.retention import expire

_KINDS: Final[Mapping[str, tuple[Action, type[User | Prediction | Lesion | ApiKey | Sender]]]] = {
    "account": (Action.ACCOUNT_DELETED, User),
    "result": (Action.RESULT_DELETED, Prediction),
    "lesion": (Action.LESION_DELETED, Lesion),
    "key": (Action.KEY_REVOKED, ApiKey),
    "sender": (Action.SENDER_REMOVED, Sender),
}


async def noted(database: Database, since: datetime) -> Sequence[str]:
    """Every deletion and revoked key that the audit notes since then, as lines like `account 0b7e…`, oldest first."""
    kinds = {action: kind for kind, (action, _) in _KINDS.items()}
    query = (
        select(AuditEntry.action, AuditEntry.object)
        .where(AuditEntry.action.in_(kinds), AuditEntry.at >= since)
        .order_by(AuditEntry.number)
    )
    async with database.transaction() as session:
        return [f"{kinds[Action(row.action)]} {row.object}" for row in (await session.execute(query)).all()]


async def repeat(database: Database, lines: Iterable[str]) -> int:
    """Delete what the lines name and what is too old for its organisation by now; returns how many rows were there.

    Every session and mailed link of the backup ends, too: some were ended since.

    Raises:
        RequestInvalid: a line is not one of `noted`; nothing was deleted.
    """
    wanted = [_read(line) for line in lines if line.strip()]
    found = 0
    async with database.transaction() as session:
        for kind, row_id in wanted:
            query = delete(kind).where(kind.id == row_id).returning(kind.id)
            found += len((await session.scalars(query)).all())
        await session.execute(delete(WebSession))
        await session.execute(delete(PasswordReset))
    return found + await expire(database)


def _read(line: str) -> tuple[type[User | Prediction | Lesion | ApiKey | Sender], UUID]:
    kind, _, row_id = line.strip().partition(" ")
    try:
        return _KINDS[kind][1], UUID(row_id)
    except (KeyError, ValueError) as error:
        raise RequestInvalid(f"Not a line of `dermserve admin deletions`: {line.strip()[:80]!r}") from error
