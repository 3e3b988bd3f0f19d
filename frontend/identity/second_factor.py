"""The second factor: six digits from an app, by the time (TOTP, RFC 6238)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import pyotp
import segno
from sqlalchemy import delete, or_, update

from dermserve.errors import RequestInvalid
from frontend import audit
from frontend.access import Caller
from frontend.audit import Action
from frontend.database import Database
from frontend.identity.tokens import fingerprint
from frontend.identity.users import caller_of
from frontend.models import User, WebSession
from frontend.vault import Vault

PURPOSE: Final = "totp"
_CHALLENGE: Final = "second factor"
_CHALLENGE_S: Final = 300
_STEP_S: Final = 30
_TOLERANCE: Final = (0, -1, 1)  # steps: clocks differ, and a code may be typed late
_AHEAD: Final = 2  # steps: as far ahead as a code may have been used; one for a late code, one for another host's clock
_WRONG: Final = "The code is not right. It changes every half minute."


@dataclass(frozen=True)
class Offer:
    """A secret for an app, not yet in use: as an address, as letters to type, and as a picture to photograph (SVG)."""

    address: str
    letters: str
    picture: str


class SecondFactor:
    """Codes of users who turned them on. A code is good once."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def challenge(self, caller: Caller) -> str:
        """What a browser that gave the right password carries to the page which asks for the code."""
        return self._vault.seal(caller.user_id.bytes, _CHALLENGE, lifetime_s=_CHALLENGE_S).hex()

    def challenged(self, challenge: str) -> UUID | None:
        """Whose challenge it is; None where it is none, or too old."""
        try:
            content = self._vault.open(bytes.fromhex(challenge), _CHALLENGE)
        except ValueError:
            return None
        return UUID(bytes=content) if content else None

    async def log_in(self, user_id: UUID, code: str) -> Caller | None:
        """The user, if the code is right and was not used before."""
        user = await self._user(user_id)
        if user is None or user.disabled_at is not None or user.totp_since is None:
            return None
        return caller_of(user) if await self._use(user, code) else None

    async def offer(self, caller: Caller) -> Offer:
        """A new secret, kept with the account until `turn_on`. Where a second factor is on already, it stays.

        Raises:
            RequestInvalid: it is on.
        """
        letters = pyotp.random_base32()
        sealed = self._vault.seal(letters.encode(), PURPOSE)
        query = (
            update(User)
            .where(User.id == caller.user_id, User.totp_since.is_(None))
            .values(totp_secret=sealed, totp_last_step=None)
            .returning(User.id)
        )
        async with self._database.transaction() as session:
            if await session.scalar(query) is None:
                raise RequestInvalid("The second factor is on already.")
        return _shown(caller.email, letters)

    async def offered(self, caller: Caller) -> Offer | None:
        """The secret of the last `offer`, to be shown again after a wrong code."""
        user = await self._user(caller.user_id)
        if user is None or user.totp_secret is None or user.totp_since is not None:
            return None
        letters = self._vault.open(user.totp_secret, PURPOSE)
        return _shown(caller.email, letters.decode()) if letters else None

    async def turn_on(self, caller: Caller, code: str, *, keep_session: str) -> None:
        """From now on ask for a code at login, and end every session but one: none may stand that gave no code.

        Raises:
            RequestInvalid: the code is not of the secret that was offered, or it is on, or another was offered meanwhile.
        """
        user = await self._user(caller.user_id)
        if user is not None and user.totp_since is not None:
            raise RequestInvalid("The second factor is on already.")
        if user is None or not await self._use(user, code):
            raise RequestInvalid(_WRONG)
        # Only with the very secret that the code was of: with one that another tab was shown, no code of the app is right.
        confirmed = User.id == caller.user_id, User.totp_secret == user.totp_secret, User.totp_since.is_(None)
        on = update(User).where(*confirmed).values(totp_since=datetime.now(UTC)).returning(User.id)
        others = delete(WebSession).where(
            WebSession.user_id == caller.user_id, WebSession.token_sha256 != fingerprint(keep_session)
        )
        async with self._database.transaction() as session:
            if await session.scalar(on) is None:
                raise RequestInvalid(
                    "Another picture was shown meanwhile. Please photograph the one that is shown now."
                )
            await session.execute(others)
            await audit.append(session, Action.SECOND_FACTOR_ON, actor=caller.user_id, about=caller.user_id)

    async def turn_off(self, caller: Caller, code: str) -> None:
        """Ask for no code any more.

        Raises:
            RequestInvalid: the code is not right.
        """
        user = await self._user(caller.user_id)
        if user is None or user.totp_since is None or not await self._use(user, code):
            raise RequestInvalid(_WRONG)
        await self.reset(caller)

    async def reset(self, caller: Caller) -> None:
        """Turn it off without a code: for an operator, when a phone is lost."""
        query = update(User).where(User.id == caller.user_id)
        async with self._database.transaction() as session:
            await session.execute(query.values(totp_since=None, totp_secret=None, totp_last_step=None))
            await audit.append(session, Action.SECOND_FACTOR_OFF, actor=caller.user_id, about=caller.user_id)

    async def _user(self, user_id: UUID) -> User | None:
        async with self._database.transaction() as session:
            return await session.get(User, user_id)

    async def _use(self, user: User, code: str) -> bool:
        """Whether the code is right; it is worthless afterwards, in every process (RFC 6238 §5.2)."""
        letters = self._vault.open(user.totp_secret, PURPOSE) if user.totp_secret else None
        if letters is None:
            return False
        totp, code = pyotp.TOTP(letters.decode(), interval=_STEP_S), "".join(code.split())
        now = int(datetime.now(UTC).timestamp()) // _STEP_S
        steps = [now + away for away in _TOLERANCE if pyotp.utils.strings_equal(code, totp.generate_otp(now + away))]
        if not steps:
            return False
        query = (
            update(User)
            .where(
                User.id == user.id,
                User.totp_secret == user.totp_secret,
                # Further ahead it was used before the clock was set back, and would lock its owner out until then.
                or_(User.totp_last_step.is_(None), User.totp_last_step < steps[0], User.totp_last_step > now + _AHEAD),
            )
            .values(totp_last_step=steps[0])
            .returning(User.id)
        )
        async with self._database.transaction() as session:
            return await session.scalar(query) is not None


def _shown(email: str, letters: str) -> Offer:
    address = pyotp.TOTP(letters).provisioning_uri(name=email, issuer_name="dermserve")
    picture = io.BytesIO()
    segno.make(address, error="m").save(
        picture, kind="svg", scale=4, border=2, xmldecl=False, svgclass=None, lineclass=None
    )
    return Offer(
        address, " ".join(letters[at : at + 4] for at in range(0, len(letters), 4)), picture.getvalue().decode()
    )
