"""Accounts of people and of services: made, logged into, changed, and deleted with all that is held about them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert

from dermserve.errors import Conflict, Forbidden, NotFound, RequestInvalid
from frontend import audit
from frontend.access import Caller, Role
from frontend.audit import Action
from frontend.database import Database
from frontend.identity import passwords
from frontend.identity.keys import key_name
from frontend.identity.passwords import Passwords
from frontend.identity.tokens import fingerprint, new_token
from frontend.models import PasswordReset, User, WebSession

SERVICE: Final = "service:"
"""The account that owns keys made without a user; not an address, so nobody can register or log in as it."""
RESET_LIFETIME: Final = timedelta(hours=1)
# Nothing that RFC 5322 §3.2.3 gives a meaning in an address: mail would go elsewhere, and with a colon it could be SERVICE.
_EMAIL: Final = re.compile(r"[^@\s,;:<>()\[\]\\\"]{1,64}@[^@\s,;:<>()\[\]\\\"]{1,189}")


@dataclass(frozen=True)
class Login:
    """Somebody who knew the password. `second_factor`: a code is asked for, too."""

    caller: Caller
    second_factor: bool


class Users:
    """Accounts in the database. What changes one is noted in the audit, in the same transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._passwords = Passwords()

    async def register(self, email: str, password: str, *, role: Role = Role.CLINICIAN) -> Caller:
        """Create a user.

        Raises:
            RequestInvalid: not an e-mail address, or a password too short, too long or equal to the address.
            Conflict: the address has an account already.
        """
        email = normal_email(email)
        if not _is_address(email):
            raise RequestInvalid("Please give a complete e-mail address.")
        passwords.check(email, password)
        return await self._create(email=email, password_hash=await self._passwords.hash(password), role=role)

    async def signed_on(self, issuer: str, subject: str, email: str) -> Caller:
        """The user whom a hospital's sign-on calls `subject`; created on the first visit.

        Raises:
            Conflict: the address has an account of its own; it is not handed to whoever the sign-on says.
            Forbidden: the account is disabled.
            RequestInvalid: the sign-on gave no usable address.
        """
        query = select(User).where(User.issuer == issuer, User.subject == subject)
        async with self._database.transaction() as session:
            user = await session.scalar(query)
        if user is not None and user.disabled_at is not None:
            raise Forbidden("This account is disabled.")
        if user is not None:
            return caller_of(user)
        email = normal_email(email)
        if not _is_address(email):
            raise RequestInvalid("The sign-on gave no e-mail address.")
        return await self._create(email=email, issuer=issuer, subject=subject)

    async def _create(self, **values: str) -> Caller:
        # Not by a violated constraint: PostgreSQL writes the address that was there already into its log.
        query = insert(User).values(**values).on_conflict_do_nothing().returning(User)
        async with self._database.transaction() as session:
            user = await session.scalar(query)
            if user is None:
                raise Conflict("There is an account with this address already. Please log in.")
            await audit.append(session, Action.REGISTERED, actor=user.id, about=user.id)
        return caller_of(user)

    async def log_in(self, email: str, password: str) -> Login | None:
        """The user whose address and password these are, or None, after the same work in either case."""
        email, user = normal_email(email), None
        if _is_address(email):  # PostgreSQL refuses some of what is no address, such as a zero byte
            async with self._database.transaction() as session:
                user = await session.scalar(select(User).where(User.email == email, User.disabled_at.is_(None)))
        correct = await self._passwords.verify(password, user.password_hash if user else None)
        if user and correct:
            return Login(caller_of(user), second_factor=user.totp_since is not None)
        await self.failed(user.id if user else None)
        return None

    async def failed(self, user_id: UUID | None) -> None:
        """Note a login that failed, whoever's account it was meant for."""
        async with self._database.transaction() as session:
            await audit.append(session, Action.LOGIN_FAILED, actor=None, about=user_id or "")

    async def change_password(self, caller: Caller, old: str, new: str, *, keep_session: str) -> None:
        """Set a new password and end every other session.

        Raises:
            Forbidden: `old` is not the password.
            RequestInvalid: `new` cannot be one.
        """
        user = await self._get(caller.user_id)
        if not await self._passwords.verify(old, user.password_hash):
            raise Forbidden("The present password is not right.")
        passwords.check(user.email, new)
        await self._set_password(user.id, new, keep_session=keep_session)

    async def is_password(self, caller: Caller, password: str) -> bool:
        """Whether it is the caller's password; for what is asked for again before something that cannot be undone."""
        return await self._passwords.verify(password, (await self._get(caller.user_id)).password_hash)

    async def ask_for_reset(self, email: str) -> tuple[str, str] | None:
        """The address and a token for a mailed link that sets a new password once; None where nobody could use it."""
        email = normal_email(email)
        if not _is_address(email):
            return None
        query = select(User).where(User.email == email, User.disabled_at.is_(None), User.password_hash.is_not(None))
        token, now = new_token(), datetime.now(UTC)
        async with self._database.transaction() as session:
            await session.execute(delete(PasswordReset).where(PasswordReset.expires_at < now))
            user = await session.scalar(query)
            if user is None:
                return None
            expires = now + RESET_LIFETIME
            session.add(PasswordReset(token_sha256=fingerprint(token), user_id=user.id, expires_at=expires))
            await audit.append(session, Action.PASSWORD_RESET_ASKED, actor=None, about=user.id)
        return user.email, token

    async def reset_password(self, token: str, new: str) -> None:
        """Set a new password by a mailed link, which then is worthless, and end all sessions.

        Raises:
            NotFound: the link was used, is too old, or never was one.
            RequestInvalid: `new` cannot be a password; the link stays good.
        """
        query = (
            select(User)
            .join(PasswordReset, PasswordReset.user_id == User.id)
            .where(PasswordReset.token_sha256 == fingerprint(token), PasswordReset.expires_at > datetime.now(UTC))
        )
        async with self._database.transaction() as session:
            user = await session.scalar(query)
        if user is None:
            raise NotFound("This link was used already or is too old. Please ask for another.")
        passwords.check(user.email, new)
        await self._set_password(user.id, new, reset=token)

    async def _set_password(self, user_id: UUID, new: str, *, keep_session: str = "", reset: str | None = None) -> None:
        hashed = await self._passwords.hash(new)
        async with self._database.transaction() as session:
            links = delete(PasswordReset).where(PasswordReset.user_id == user_id).returning(PasswordReset.token_sha256)
            found = (await session.scalars(links)).all()
            if reset is not None and fingerprint(reset) not in found:  # another click on the same link was quicker
                raise NotFound("This link was used already or is too old. Please ask for another.")
            await session.execute(update(User).where(User.id == user_id).values(password_hash=hashed))
            await session.execute(
                delete(WebSession).where(
                    WebSession.user_id == user_id, WebSession.token_sha256 != fingerprint(keep_session)
                )
            )
            await audit.append(session, Action.PASSWORD_CHANGED, actor=user_id, about=user_id)

    async def delete(self, caller: Caller) -> None:
        """Delete an account and everything that hangs on it: sessions, keys, lesions, results.

        What stays is the audit, whose ids then lead to nobody.
        """
        async with self._database.transaction() as session:
            await session.execute(delete(User).where(User.id == caller.user_id))
            await audit.append(session, Action.ACCOUNT_DELETED, actor=caller.user_id, about=caller.user_id)

    async def get(self, caller: Caller) -> User:
        """The caller's own row."""
        return await self._get(caller.user_id)

    async def by_email(self, email: str) -> Caller:
        """The user with this address.

        Raises:
            NotFound: there is none.
        """
        async with self._database.transaction() as session:
            user = await session.scalar(select(User).where(User.email == normal_email(email)))
        if user is None:
            raise NotFound(f"There is no user {email}.")
        return caller_of(user)

    async def service(self, name: str) -> Caller:
        """The service account `name`, which cannot log in; created on first use.

        One for each gateway: two that shared an account would read, delete and collide with each other's results.

        Raises:
            RequestInvalid: no usable name.
        """
        email = SERVICE + normal_email(key_name(name))
        async with self._database.transaction() as session:
            await session.execute(insert(User).values(email=email, role=Role.HOSPITAL).on_conflict_do_nothing())
        return await self.by_email(email)

    async def _get(self, user_id: UUID) -> User:
        async with self._database.transaction() as session:
            user = await session.get(User, user_id)
        if user is None:
            raise NotFound("There is no such account.")
        return user


def normal_email(email: str) -> str:
    """The form under which an address is stored and throttled."""
    return unicodedata.normalize("NFKC", email).strip().lower()


def _is_address(email: str) -> bool:
    """Whether it may name an account; invisible characters could make it look like another one."""
    return bool(_EMAIL.fullmatch(email)) and email.isprintable()


def caller_of(user: User) -> Caller:
    """The user as who calls."""
    return Caller(user.id, user.email, Role(user.role), user.organisation_id)
