"""Web sessions: opened at login, listed, ended one by one or with everything else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select

from dermserve.errors import NotFound
from frontend import audit
from frontend.access import Caller
from frontend.audit import Action
from frontend.database import Database
from frontend.identity.tokens import fingerprint, new_token
from frontend.identity.users import caller_of
from frontend.models import User, WebSession

_AGENT_MAX: Final = 120


class Sessions:
    """Web sessions in the database, each good for `lifetime`."""

    def __init__(self, database: Database, *, lifetime: timedelta) -> None:
        self._database = database
        self.lifetime = lifetime

    async def open(self, caller: Caller, agent: str = "") -> str:
        """Begin a session and return its token, which is never stored; sweeps out expired sessions on the way.

        `agent`: how the browser calls itself, for its owner to recognise it by.
        """
        token, now = new_token(), datetime.now(UTC)
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(WebSession.expires_at < now))
            session.add(
                WebSession(
                    token_sha256=fingerprint(token),
                    user_id=caller.user_id,
                    agent="".join(filter(str.isprintable, agent))[:_AGENT_MAX],
                    expires_at=now + self.lifetime,
                )
            )
            await audit.append(session, Action.LOGGED_IN, actor=caller.user_id, about=caller.user_id)
        return token

    async def caller(self, token: str) -> Caller | None:
        """The user of a running session."""
        query = (
            select(User)
            .join(WebSession, WebSession.user_id == User.id)
            .where(
                WebSession.token_sha256 == fingerprint(token),
                WebSession.expires_at > datetime.now(UTC),
                User.disabled_at.is_(None),
            )
        )
        async with self._database.transaction() as session:
            user = await session.scalar(query)
        return caller_of(user) if user else None

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
