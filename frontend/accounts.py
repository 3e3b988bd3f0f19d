"""Who may come in: users and their passwords, web sessions, API keys.

Passwords are slow-hashed with Argon2id. Session tokens and API keys are 256 random bits, for which one SHA-256 is
enough: there is nothing to guess, and the table's content cannot be used as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from pwdlib import PasswordHash
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from dermserve.errors import Conflict, NotFound, RequestInvalid
from frontend.database import Database, Statement
from frontend.models import ApiKey, User, WebSession

PASSWORD_MIN: Final = 12
"""Characters. Long rather than intricate: NIST SP 800-63B §3.1.1 asks for length and against composition rules."""
PASSWORD_MAX: Final = 128
NAME_MAX: Final = 80
SERVICE: Final = "service:"
"""The account that owns keys made without a user; not an address, so nobody can register or log in as it."""

_KEY_PREFIX: Final = "derm_"
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")
_LAST_USED_STEP: Final = timedelta(minutes=1)  # writing the time of every single use would double the work per image
_MAX_KEYS: Final = 50
_KEY_TRUSTED_S: Final = 0.5  # a revoked key stops within it, in every process
_MAX_TRUSTED: Final = 1000


_BY_KEY: Final = Statement(
    select(User.id, User.email, User.is_admin, ApiKey.last_used_at)
    .join(ApiKey, ApiKey.user_id == User.id)
    .where(ApiKey.key_sha256 == bindparam("key_sha256"), ApiKey.revoked_at.is_(None))
)


@dataclass(frozen=True)
class Caller:
    """Who a request comes from. `machine`: it came with an API key, not from a person at a page."""

    user_id: UUID
    email: str
    is_admin: bool = False
    machine: bool = False


class Passwords:
    """Argon2id off the event loop, two at a time: each takes 64 MiB and a core for some 50 ms."""

    def __init__(self) -> None:
        self._hash = PasswordHash.recommended()
        self._gate = asyncio.Semaphore(2)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        async with self._gate:
            return await asyncio.to_thread(self._hash.hash, _normal(password))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether it is the password. Takes as long where there is none, so that time tells no one who has an account."""
        if self._nobody is None:
            self._nobody = await self.hash(secrets.token_hex())
        if len(password) > PASSWORD_MAX:
            return False
        async with self._gate:
            correct = await asyncio.to_thread(self._hash.verify, _normal(password), stored or self._nobody)
        return correct and stored is not None


class Accounts:
    """Users, sessions and API keys in the database."""

    def __init__(self, database: Database, *, session_hours: int) -> None:
        self._database = database
        self._passwords = Passwords()
        self._trusted: dict[bytes, tuple[float, Caller]] = {}
        self.session_lifetime = timedelta(hours=session_hours)

    async def register(self, email: str, password: str, *, is_admin: bool = False) -> Caller:
        """Create a user.

        Raises:
            RequestInvalid: not an e-mail address, or a password too short, too long or equal to the address.
            Conflict: the address has an account already.
        """
        email = normal_email(email)
        if not _EMAIL.fullmatch(email):
            raise RequestInvalid("Please give a complete e-mail address.")
        _check_password(email, password)
        user = User(email=email, password_hash=await self._passwords.hash(password), is_admin=is_admin)
        try:
            async with self._database.transaction() as session:
                session.add(user)
        except IntegrityError as error:
            raise Conflict("There is an account with this address already. Please log in.") from error
        return _caller(user)

    async def log_in(self, email: str, password: str) -> Caller | None:
        """The user whose address and password these are, or None, after the same work in either case."""
        email, user = normal_email(email), None
        if _EMAIL.fullmatch(email):  # PostgreSQL refuses some of what is no address, such as a zero byte
            async with self._database.transaction() as session:
                user = await session.scalar(select(User).where(User.email == email))
        correct = await self._passwords.verify(password, user.password_hash if user else None)
        return _caller(user) if user and correct else None

    async def open_session(self, caller: Caller) -> str:
        """Begin a web session and return its token, which is never stored; sweeps out expired sessions on the way."""
        token = secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(WebSession.expires_at < now))
            session.add(
                WebSession(token_sha256=_sha256(token), user_id=caller.user_id, expires_at=now + self.session_lifetime)
            )
        return token

    async def by_session(self, token: str) -> Caller | None:
        """The user of a running session."""
        query = (
            select(User)
            .join(WebSession, WebSession.user_id == User.id)
            .where(WebSession.token_sha256 == _sha256(token), WebSession.expires_at > datetime.now(UTC))
        )
        async with self._database.transaction() as session:
            user = await session.scalar(query)
        return _caller(user) if user else None

    async def close_session(self, token: str) -> None:
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(WebSession.token_sha256 == _sha256(token)))

    async def create_key(self, owner: UUID, name: str) -> str:
        """Create an API key and return it; it cannot be shown again.

        Raises:
            RequestInvalid: no name, one that is too long, or too many keys.
        """
        name = _key_name(name)
        if sum(key.revoked_at is None for key in await self.keys(owner)) >= _MAX_KEYS:
            raise RequestInvalid(f"There are {_MAX_KEYS} keys already; revoke one first.")
        key = _KEY_PREFIX + secrets.token_urlsafe(32)
        async with self._database.transaction() as session:
            session.add(ApiKey(user_id=owner, name=name, hint=key[: len(_KEY_PREFIX) + 4], key_sha256=_sha256(key)))
        return key

    async def by_key(self, key: str) -> Caller | None:
        """The owner of an API key that was not revoked half a second ago; notes its use, to the minute."""
        if not key.startswith(_KEY_PREFIX):
            return None
        digest, asked = _sha256(key), time.monotonic()
        trusted = self._trusted.get(digest)
        if trusted is not None and asked - trusted[0] < _KEY_TRUSTED_S:
            return trusted[1]
        caller = await self._look_up_key(digest)
        self._trusted.pop(digest, None)
        if caller is not None:
            if len(self._trusted) >= _MAX_TRUSTED:
                self._trusted.clear()
            self._trusted[digest] = (asked, caller)  # from before the question: revoked since then is not yet seen
        return caller

    async def _look_up_key(self, digest: bytes) -> Caller | None:
        rows = await self._database.fetch_each(_BY_KEY, [{"key_sha256": digest}])
        if not rows:
            return None
        [found], now = rows, datetime.now(UTC)
        if found["last_used_at"] is None or now - found["last_used_at"] > _LAST_USED_STEP:
            async with self._database.transaction() as session:
                await session.execute(update(ApiKey).where(ApiKey.key_sha256 == digest).values(last_used_at=now))
        return Caller(user_id=found["id"], email=found["email"], is_admin=found["is_admin"], machine=True)

    async def keys(self, owner: UUID) -> Sequence[ApiKey]:
        """All keys of a user, newest first, revoked ones included."""
        query = select(ApiKey).where(ApiKey.user_id == owner).order_by(ApiKey.created_at.desc(), ApiKey.id)
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def revoke_key(self, owner: UUID, key_id: UUID) -> None:
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
        self._trusted.clear()

    async def by_email(self, email: str) -> Caller:
        """The user with this address.

        Raises:
            NotFound: there is none.
        """
        async with self._database.transaction() as session:
            user = await session.scalar(select(User).where(User.email == normal_email(email)))
        if user is None:
            raise NotFound(f"There is no user {email}.")
        return _caller(user)

    async def service(self, name: str) -> Caller:
        """The service account `name`, which cannot log in; created on first use.

        One for each gateway: two that shared an account would read, delete and collide with each other's results.

        Raises:
            RequestInvalid: no usable name.
        """
        email = SERVICE + normal_email(_key_name(name))
        async with self._database.transaction() as session:
            await session.execute(insert(User).values(email=email).on_conflict_do_nothing())
        return await self.by_email(email)


def _key_name(name: str) -> str:
    name = " ".join(name.split())
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise RequestInvalid(f"Please give the key a name of at most {NAME_MAX} characters.")
    return name


def normal_email(email: str) -> str:
    """The form under which an address is stored and throttled."""
    return unicodedata.normalize("NFKC", email).strip().lower()


def _check_password(email: str, password: str) -> None:
    if len(password) < PASSWORD_MIN:
        raise RequestInvalid(f"Please choose a password of at least {PASSWORD_MIN} characters; a few words are fine.")
    if len(password) > PASSWORD_MAX:
        raise RequestInvalid(f"Please choose a password of at most {PASSWORD_MAX} characters.")
    if password.strip().lower() == email or len(set(password)) < 4:
        raise RequestInvalid("This password is too easy to guess; a few unrelated words are better.")


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _caller(user: User) -> Caller:
    return Caller(user_id=user.id, email=user.email, is_admin=user.is_admin)
