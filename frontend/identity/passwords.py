"""Passwords: what one must be like, and how it is kept (Argon2id)."""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from typing import Final

from pwdlib import PasswordHash

from dermserve.errors import RequestInvalid

SHORTEST: Final = 12
"""Characters. Long rather than intricate: NIST SP 800-63B §3.1.1 asks for length and against composition rules."""
LONGEST: Final = 128


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
        if len(password) > LONGEST:
            return False
        async with self._gate:
            correct = await asyncio.to_thread(self._hash.verify, _normal(password), stored or self._nobody)
        return correct and stored is not None


def check(email: str, password: str) -> None:
    """Return if this may become the password of the account with this address.

    Raises:
        RequestInvalid: too short, too long, or easy to guess.
    """
    if len(password) < SHORTEST:
        raise RequestInvalid(f"Please choose a password of at least {SHORTEST} characters; a few words are fine.")
    if len(password) > LONGEST:
        raise RequestInvalid(f"Please choose a password of at most {LONGEST} characters.")
    if password.strip().lower() == email or len(set(password)) < 4:
        raise RequestInvalid("This password is too easy to guess; a few unrelated words are better.")


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)
