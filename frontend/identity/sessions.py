"""Web sessions: opened at login, listed, ended one by one or with everything else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select, update

from dermserve.errors import NotFound, Unauthenticated
from frontend import audit
from frontend.access import Caller
from frontend.audit import Action
from frontend.database import Database
from frontend.identity.tokens import fingerprint, new_token
from frontend.identity.users import caller_of
from frontend.models import User, WebSession

_AGENT_MAX: Final = 120
_STEP: Final = timedelta(minutes=1)  # noting every single request would double the work of most


class Sessions:
    """Web sessions in the database, each good for `lifetime` at most, and until nothing came with it for `idle`."""

    def __init__(self, database: Database, *, lifetime: timedelta, idle: timedelta) -> None:
        self._database = database
        self.lifetime = lifetime
        self._idle = idle

    async def open(self, caller: Caller, agent: str = "") -> str:
        """Begin a session and return its token, which is never stored; sweeps out expired sessions on the way.

        `agent`: how the browser calls itself, for its owner to recognise it by.

        Raises:
            Unauthenticated: the account was deleted or disabled since the password was found to be right.
        """
        token, now = new_token(), datetime.now(UTC)
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(WebSession.expires_at < now))
            usable = select(User.id).where(User.id == caller.user_id, User.disabled_at.is_(None))
            if await session.scalar(usable.with_for_update(read=True)) is None:
                raise Unauthenticated("This account was deleted or disabled.")
            session.add(
                WebSession(
                    token_sha256=fingerprint(token),
                    user_id=caller.user_id,
                    agent="".join(filter(str.isprintable, agent))[:_AGENT_MAX],
                    created_at=now,
                    expires_at=self._ends(now, now),
                )
            )
            await audit.append(session, Action.LOGGED_IN, actor=caller.user_id, about=caller.user_id)
        return token

    async def caller(self, token: str) -> Caller | None:
        """The user of a running session, which goes on from here for as long as one may stand idle."""
        now, mine = datetime.now(UTC), WebSession.token_sha256 == fingerprint(token)
        query = (
            select(User, WebSession.created_at, WebSession.expires_at)
            .join(WebSession, WebSession.user_id == User.id)
            .where(mine, WebSession.expires_at > now, User.disabled_at.is_(None))
        )
        async with self._database.transaction() as session:
            found = (await session.execute(query)).first()
            if found is None:
                return None
            user, began, ends = found
            later = self._ends(began, now)
            if later - ends >= _STEP:
                # Only where it still runs: what ended meanwhile stays ended.
                await session.execute(
                    update(WebSession).where(mine, WebSession.expires_at > now).values(expires_at=later)
                )
        return caller_of(user)

    def _ends(self, began: datetime, now: datetime) -> datetime:
        return min(began + self.lifetime, now + self._idle)

    async def close(self, token: str) -> None:
        """End the session of a cookie; nothing happens where there is none."""
        query = delete(WebSession).where(WebSession.token_sha256 == fingerprint(token)).returning(WebSession.user_id)
        async with self._database.transaction() as session:
            user_id = await session.scalar(query)
            if user_id is not None:
                await audit.append(session, Action.LOGGED_OUT, actor=user_id, about=user_id)

    async def all(self, caller: Caller) -> Sequence[WebSession]:
        """The running sessions of a user, newest first."""
        query = (
            select(WebSession)
            .where(WebSession.user_id == caller.user_id, WebSession.expires_at > datetime.now(UTC))
            .order_by(WebSession.created_at.desc(), WebSession.id)
        )
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def revoke(self, caller: Caller, session_id: UUID) -> None:
        """End one of the caller's sessions.

        Raises:
            NotFound: it is not theirs, or not there.
        """
        query = (
            delete(WebSession)
            .where(WebSession.id == session_id, WebSession.user_id == caller.user_id)
            .returning(WebSession.id)
        )
        async with self._database.transaction() as session:
            if await session.scalar(query) is None:
                raise NotFound("There is no such session.")
            await audit.append(session, Action.SESSION_REVOKED, actor=caller.user_id, about=session_id)
