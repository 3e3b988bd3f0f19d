"""Organisations and their members, as an administrator manages them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from dermserve.errors import Conflict, NotFound, RequestInvalid
from frontend import audit, retention
from frontend.access import Caller, Permission, Role
from frontend.audit import Action
from frontend.database import Database
from frontend.models import AuditEntry, Organisation, User, WebSession

NAME_MAX: Final = 120
RETENTION_MAX_DAYS: Final = 36_500


class Listed(NamedTuple):
    """An organisation and the number of its members."""

    organisation: Organisation
    members: int


def shown(row: Organisation | User) -> str:
    """What a form shows of it, to tell when it comes back whether somebody else has changed it meanwhile."""
    if isinstance(row, User):
        return f"{row.role} {row.organisation_id or ''} {'' if row.disabled_at else 'enabled'}"
    return f"{row.retention_days or ''} {row.name}"


class Organisations:
    """Organisations in the database. Every method but `of` asks for the permission to manage members."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, caller: Caller) -> Organisation | None:
        """The caller's own organisation."""
        if caller.organisation_id is None:
            return None
        async with self._database.transaction() as session:
            return await session.get(Organisation, caller.organisation_id)

    async def all(self, admin: Caller) -> Sequence[Listed]:
        """By name."""
        admin.require(Permission.MANAGE_MEMBERS)
        members = select(func.count()).where(User.organisation_id == Organisation.id).scalar_subquery()
        async with self._database.transaction() as session:
            rows = (await session.execute(select(Organisation, members).order_by(Organisation.name))).all()
        return [Listed(organisation, count) for organisation, count in rows]

    async def create(self, admin: Caller, name: str) -> UUID:
        """Add an organisation.

        Raises:
            RequestInvalid: no usable name.
            Conflict: there is one of this name.
        """
        admin.require(Permission.MANAGE_MEMBERS)
        row = Organisation(name=_name(name))
        try:
            async with self._database.transaction() as session:
                session.add(row)
                await session.flush()
                await audit.append(session, Action.ORGANISATION_CREATED, actor=admin.user_id, about=row.id)
        except IntegrityError as error:
            raise Conflict("There is an organisation with this name already.") from error
        return row.id

    async def change(
        self,
        admin: Caller,
        organisation_id: UUID,
        name: str,
        retention_days: str,
        *,
        seen: str = "",
        confirmed: int = 0,
    ) -> int:
        """Rename it, and say after how many days its members' results are deleted ("": never).

        `seen` is what `shown` said when the form was made. Where more than `confirmed` results would be deleted at once,
        nothing changes and their number is returned; 0 once it is done.

        Raises:
            RequestInvalid, Conflict, NotFound: as the words say.
        """
        admin.require(Permission.MANAGE_MEMBERS)
        name, days = _name(name), _days(retention_days)
        try:
            async with self._database.transaction() as session:
                row = await session.get(Organisation, organisation_id, with_for_update=True)
                if row is None:
                    raise NotFound("There is no such organisation.")
                _check_seen(seen, row)
                if days is not None and (row.retention_days is None or days < row.retention_days):
                    due = await retention.due(session, retention.members(organisation_id), days)
                    if due > confirmed:
                        return due
                row.name, row.retention_days = name, days
                await session.flush()
                await audit.append(session, Action.ORGANISATION_CHANGED, actor=admin.user_id, about=organisation_id)
        except IntegrityError as error:
            raise Conflict("There is an organisation with this name already.") from error
        return 0

    async def members(self, admin: Caller, *, search: str = "", limit: int = 100) -> Sequence[User]:
        """Accounts whose address holds `search`, by address."""
        admin.require(Permission.MANAGE_MEMBERS)
        query = select(User).where(User.email.contains(search.replace("\0", "").strip().lower(), autoescape=True))
        async with self._database.transaction() as session:
            return (await session.scalars(query.order_by(User.email).limit(limit))).all()

    async def change_member(
        self,
        admin: Caller,
        user_id: UUID,
        *,
        role: str,
        organisation_id: str,
        enabled: bool,
        seen: str = "",
        confirmed: int = 0,
    ) -> int:
        """Set a member's role and organisation ("": none), and whether the account may be used.

        `seen`, `confirmed` and the number that is returned are those of `change`: another organisation may keep results
        for a shorter time.

        Raises:
            RequestInvalid: unknown values, or an administrator who would lock themselves out.
            Conflict: somebody else has changed the member meanwhile.
            NotFound: there is no such account or organisation.
        """
        admin.require(Permission.MANAGE_MEMBERS)
        if role not in set(Role):
            raise RequestInvalid("There is no such role.")
        try:
            organisation = UUID(organisation_id) if organisation_id else None
        except ValueError as error:
            raise RequestInvalid("There is no such organisation.") from error
        if user_id == admin.user_id and (role != admin.role or not enabled):
            raise RequestInvalid("You cannot take the role or the account away from yourself.")
        now = datetime.now(UTC)
        try:
            async with self._database.transaction() as session:
                user = await session.get(User, user_id, with_for_update=True)
                if user is None:
                    raise NotFound("There is no such account.")
                _check_seen(seen, user)
                if organisation is not None and organisation != user.organisation_id:
                    days = await session.scalar(
                        select(Organisation.retention_days).where(Organisation.id == organisation)
                    )
                    due = await retention.due(session, select(User.id).where(User.id == user_id), days)
                    if due > confirmed:
                        return due
                noted: list[Action] = []
                if user.role != role:
                    user.role, noted = role, [*noted, Action.ROLE_CHANGED]
                if user.organisation_id != organisation:
                    user.organisation_id, noted = organisation, [*noted, Action.MEMBER_MOVED]
                if enabled and user.disabled_at is not None:
                    user.disabled_at, noted = None, [*noted, Action.ACCOUNT_ENABLED]
                if not enabled and user.disabled_at is None:
                    user.disabled_at, noted = now, [*noted, Action.ACCOUNT_DISABLED]
                    await session.execute(delete(WebSession).where(WebSession.user_id == user_id))
                await session.flush()
                for action in noted:
                    await audit.append(session, action, actor=admin.user_id, about=user_id)
        except IntegrityError as error:
            raise NotFound("There is no such organisation.") from error
        return 0

    async def audit(self, caller: Caller, *, before: int | None = None, limit: int = 100) -> Sequence[AuditEntry]:
        """Rows of the audit, newest first; `before` is the number after which to go on."""
        caller.require(Permission.SEE_AUDIT)
        query = select(AuditEntry).order_by(AuditEntry.number.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditEntry.number < before)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()


def _check_seen(seen: str, row: Organisation | User) -> None:
    if seen and seen != shown(row):
        raise Conflict("Somebody else has changed this meanwhile. Please look at it as it is now, and save again.")


def _name(name: str) -> str:
    name = " ".join(name.split())
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise RequestInvalid(f"Please give the organisation a name of at most {NAME_MAX} characters.")
    return name


def _days(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= RETENTION_MAX_DAYS:
        raise RequestInvalid(f"Results are kept for 1 to {RETENTION_MAX_DAYS} days, or for good.")
    return int(text)
