"""API keys: what machines come in with."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, or_, select, update

from dermserve.errors import Conflict, NotFound, RequestInvalid, Unauthenticated
from frontend import audit
from frontend.access import ALL_SCOPES, Caller, Role, Scope
from frontend.audit import Action
from frontend.database import Database, Statement
from frontend.identity.tokens import fingerprint, new_token
from frontend.models import ApiKey, User

NAME_MAX: Final = 80
_PREFIX: Final = "derm_"
_LAST_USED_STEP: Final = timedelta(minutes=1)  # writing the time of every single use would double the work per image
_MAX_KEYS: Final = 50
_TRUSTED_S: Final = 0.5  # a revoked key stops within it, in every process
_MAX_TRUSTED: Final = 1000

_BY_KEY: Final = Statement(
    select(
        User.id,
        User.email,
        User.role,
        User.organisation_id,
        ApiKey.id.label("key_id"),
        ApiKey.scopes,
        ApiKey.last_used_at,
    )
    .join(ApiKey, ApiKey.user_id == User.id)
    .where(
        ApiKey.key_sha256 == bindparam("key_sha256"),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        User.disabled_at.is_(None),
    )
)


class Keys:
    """API keys in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trusted: dict[bytes, tuple[float, Caller]] = {}

    async def create(
        self,
        owner: UUID,
        name: str,
        *,
        scopes: Collection[Scope] = ALL_SCOPES,
        expires_at: datetime | None = None,
        another: bool = False,
    ) -> str:
        """Create a key and return it; it cannot be shown again.

        `another`: also where a key of this name is still good, to replace it. Else a form that is sent twice would leave
        a key that nobody has seen.

        Raises:
            RequestInvalid: no name, one that is too long, no scope, an expiry in the past, or too many keys.
            Conflict: a key of this name is still good.
            Unauthenticated: the account was deleted meanwhile.
        """
        name = key_name(name)
        if not scopes:
            raise RequestInvalid("Please choose what the key may be used for.")
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise RequestInvalid("The key would have expired already.")
        key = _PREFIX + new_token()
        row = ApiKey(
            user_id=owner,
            name=name,
            hint=key[: len(_PREFIX) + 4],
            key_sha256=fingerprint(key),
            scopes=sorted(scopes),
            expires_at=expires_at,
        )
        mine = ApiKey.user_id == owner, ApiKey.revoked_at.is_(None)
        good = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
        # One at a time for each owner, or two that come together would not see each other.
        lock = select(User.id).where(User.id == owner).with_for_update(key_share=True)
        async with self._database.transaction() as session:
            if await session.scalar(lock) is None:
                raise Unauthenticated("This account was deleted.")
            if not another and await session.scalar(select(ApiKey.id).where(*mine, good, ApiKey.name == name).limit(1)):
                raise Conflict("There is a key of this name already. Revoke it first, or choose another name.")
            if (await session.scalar(select(func.count()).where(*mine)) or 0) >= _MAX_KEYS:
                raise RequestInvalid(f"There are {_MAX_KEYS} keys already; revoke one first.")
            session.add(row)
            await session.flush()
            await audit.append(session, Action.KEY_CREATED, actor=owner, about=row.id)
        return key

    async def caller(self, key: str) -> Caller | None:
        """The owner of a key that was good half a second ago; notes its use, to the minute."""
        if not key.startswith(_PREFIX):
            return None
        digest, asked = fingerprint(key), time.monotonic()
        trusted = self._trusted.get(digest)
        if trusted is not None and asked - trusted[0] < _TRUSTED_S:
            return trusted[1]
        caller = await self._look_up(digest)
        self._trusted.pop(digest, None)
        if caller is not None:
            if len(self._trusted) >= _MAX_TRUSTED:
                self._trusted.clear()
            self._trusted[digest] = (asked, caller)  # from before the question: revoked since then is not yet seen
        return caller

    async def _look_up(self, digest: bytes) -> Caller | None:
        rows = await self._database.fetch_each(_BY_KEY, [{"key_sha256": digest}])
        if not rows:
            return None
        [found], now = rows, datetime.now(UTC)
        if found["last_used_at"] is None or now - found["last_used_at"] > _LAST_USED_STEP:
            async with self._database.transaction() as session:
                await session.execute(update(ApiKey).where(ApiKey.key_sha256 == digest).values(last_used_at=now))
        return Caller(
            user_id=found["id"],
            email=found["email"],
            role=Role(found["role"]),
            organisation_id=found["organisation_id"],
            key_id=found["key_id"],
            scopes=frozenset(map(Scope, found["scopes"])),
        )

    async def all(self, owner: UUID) -> Sequence[ApiKey]:
        """All keys of a user, newest first, revoked ones included."""
        query = select(ApiKey).where(ApiKey.user_id == owner).order_by(ApiKey.created_at.desc(), ApiKey.id)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def revoke(self, owner: UUID, key_id: UUID) -> None:
        """Make a key useless from now on.

        Raises:
            NotFound: this user has no such key in use.
        """
        query = (
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.user_id == owner, ApiKey.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC))
            .returning(ApiKey.id)
        )
        async with self._database.transaction() as session:
            if await session.scalar(query) is None:
                raise NotFound("There is no such key.")
            await audit.append(session, Action.KEY_REVOKED, actor=owner, about=key_id)
        self._trusted.clear()


def key_name(name: str) -> str:
    """A name as it is kept.

    Raises:
        RequestInvalid: none, too long, or not printable.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise RequestInvalid(f"Please give the key a name of at most {NAME_MAX} characters.")
    return name
