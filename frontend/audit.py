"""The audit: an append-only chain of who did what, which shows whether anybody altered it.

Each row's hash is SHA-256 of the row before's hash and the row's own content, so a changed, removed or inserted row
breaks the chain from there on. Rows cut off at the end leave no trace in a chain; whoever wants to notice that keeps the
count and the last hash elsewhere, and gives them to `dermserve admin verify-audit`.

Nothing in it names a person, a patient or a file: actors and objects are ids, and the actions a closed set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from frontend.database import Database
from frontend.models import AuditEntry

_LOCK: Final = 0x61756474  # "audt": one writer at a time, in all processes, or two rows would follow the same one
_START: Final = bytes(32)
_STEP: Final = 1000


class Action(StrEnum):
    """What is noted. An object's id stands beside it."""

    REGISTERED = "account.registered"
    LOGGED_IN = "account.logged_in"
    LOGIN_FAILED = "account.login_failed"
    LOGGED_OUT = "account.logged_out"
    PASSWORD_CHANGED = "account.password_changed"  # noqa: S105  the name of an action
    PASSWORD_RESET_ASKED = "account.password_reset_asked"  # noqa: S105
    SECOND_FACTOR_ON = "account.second_factor_on"
    SECOND_FACTOR_OFF = "account.second_factor_off"
    SESSION_REVOKED = "account.session_revoked"
    ACCOUNT_EXPORTED = "account.exported"
    ACCOUNT_DELETED = "account.deleted"
    ACCOUNT_DISABLED = "account.disabled"
    ACCOUNT_ENABLED = "account.enabled"
    ROLE_CHANGED = "account.role_changed"
    MEMBER_MOVED = "account.organisation_changed"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    SENDER_ALLOWED = "sender.allowed"
    SENDER_REMOVED = "sender.removed"
    ORGANISATION_CREATED = "organisation.created"
    ORGANISATION_CHANGED = "organisation.changed"
    RESULT_READ = "result.read"
    RESULT_CHANGED = "result.changed"
    RESULT_DELETED = "result.deleted"
    RESULTS_EXPORTED = "results.exported"
    RESULTS_EXPIRED = "results.expired"
    LESION_DELETED = "lesion.deleted"
    DESTINATION_ADDED = "destination.added"
    DESTINATION_REMOVED = "destination.removed"
    DELIVERIES_RETRIED = "deliveries.retried"


@dataclass(frozen=True)
class Verdict:
    """`count` rows are whole, `head` is the hash of the last of them (hex), `fault` says what is wrong after it."""

    count: int
    head: str
    fault: str | None = None


async def append(session: AsyncSession, action: Action, *, actor: UUID | None, about: object = "") -> None:
    """Add a row in the caller's transaction: what is noted and what was done are committed together or not at all.

    Call it last: until the commit no other process can add a row.
    """
    await session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    last = (
        await session.execute(select(AuditEntry.number, AuditEntry.hash).order_by(AuditEntry.number.desc()).limit(1))
    ).first()
    number, previous = (last.number + 1, last.hash) if last else (1, _START)
    entry = AuditEntry(number=number, at=datetime.now(UTC), actor=actor, action=str(action), object=str(about))
    entry.hash = _hash(previous, entry)
    session.add(entry)
    await session.flush()


async def verify(database: Database, *, count: int | None = None, head: str | None = None) -> Verdict:
    """Recompute the chain from its beginning; `count` and `head` are what an earlier verdict said, kept elsewhere."""
    previous, whole, seen = _START, 0, count in (None, 0)
    async for entry in _entries(database):
        if entry.number != whole + 1 or entry.hash != _hash(previous, entry):
            return Verdict(whole, previous.hex(), f"Row {whole + 1} was altered, removed or put in between.")
        previous, whole = entry.hash, entry.number
        if whole == count:
            seen = True
            if head is not None and previous.hex() != head:
                return Verdict(whole, previous.hex(), f"Row {whole} is not the one that was seen before.")
    if not seen:
        return Verdict(whole, previous.hex(), f"There were {count} rows before; the last ones were cut off.")
    return Verdict(whole, previous.hex())


async def of_account(database: Database, user_id: UUID) -> AsyncIterator[AuditEntry]:
    """What an account did and what was done to it, oldest first."""
    about = or_(AuditEntry.actor == user_id, AuditEntry.object == str(user_id))
    async for entry in _entries(database, about):
        yield entry


async def _entries(database: Database, *conditions: ColumnElement[bool]) -> AsyncIterator[AuditEntry]:
    after = 0
    while True:
        wanted = select(AuditEntry).where(AuditEntry.number > after, *conditions)
        query = wanted.order_by(AuditEntry.number).limit(_STEP)
        async with database.transaction() as session:
            rows = (await session.scalars(query)).all()
        for row in rows:
            yield row
        if len(rows) < _STEP:
            return
        after = rows[-1].number


def _hash(previous: bytes, entry: AuditEntry) -> bytes:
    actor = str(entry.actor) if entry.actor else None
    at = entry.at.astimezone(UTC).isoformat(timespec="microseconds")
    content = json.dumps([entry.number, at, actor, entry.action, entry.object], ensure_ascii=True)
    return hashlib.sha256(previous + content.encode()).digest()
