"""What must be read again but is worth nothing as it stands in the database or in a cookie: sealed with a key of the server.

What must only be recognised again gets a pseudonym by the same key.

AES-256-GCM (NIST SP 800-38D), which also tells whether somebody altered it. The key is `DERMSERVE_SECRET_KEY`, the same
for all replicas; without it, a file in the state folder that is made on first use. To replace it, both hold several: with
commas between them, or one a line. The first seals, all open, and `dermserve admin rotate-secret` seals anew.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dermserve.errors import StartupError
from dermserve.settings import Settings

KEY_FILE: Final = "secret.key"
_NONCE: Final = 12  # bytes, as GCM wants it
_TIME: Final = 8
_KEY_MIN: Final = 32  # characters


class Vault:
    """Seals with the first key and opens with each. `purpose` binds what is sealed to its use: it opens for no other."""

    def __init__(self, newest: str, *older: str) -> None:
        keys = [hashlib.sha256(key.encode()).digest() for key in (newest, *older)]
        self._ciphers = [AESGCM(key) for key in keys]
        self._newest = keys[0]

    @classmethod
    def of(cls, settings: Settings) -> Vault:
        """With the keys of the settings, or those of the state folder.

        Raises:
            StartupError: one of them is shorter than a key may be.
        """
        if settings.secret_key is None:
            return cls(*_kept(settings.state_dir / KEY_FILE))
        keys = [key.strip() for key in settings.secret_key.get_secret_value().split(",")]
        if min(map(len, keys)) < _KEY_MIN:
            raise StartupError(f"Each key in DERMSERVE_SECRET_KEY has at least {_KEY_MIN} characters and no comma.")
        return cls(*keys)

    def seal(self, content: bytes, purpose: str, *, lifetime_s: float | None = None) -> bytes:
        """Content that only `open` of this server reads, for `lifetime_s` from now or for good."""
        ends = int(time.time() + lifetime_s) if lifetime_s is not None else 0
        nonce = os.urandom(_NONCE)
        return nonce + self._ciphers[0].encrypt(nonce, ends.to_bytes(_TIME, "big") + content, purpose.encode())

    def pseudonym(self, content: bytes, purpose: str) -> bytes:
        """32 bytes that are the same for the same content and purpose, and tell nothing of it without the key.

        HMAC-SHA-256 (RFC 2104) with a key for the purpose alone, itself an HMAC by the server's newest key: a new
        one gives new pseudonyms.
        """
        key = hmac.digest(self._newest, b"pseudonym of " + purpose.encode(), "sha256")
        return hmac.digest(key, content, "sha256")

    def open(self, sealed: bytes, purpose: str) -> bytes | None:
        """What was sealed; None where it was altered, sealed with another key or for another purpose, or is too old."""
        for cipher in self._ciphers:
            content = _opened(cipher, sealed, purpose)
            if content is not None:
                ends = int.from_bytes(content[:_TIME], "big")
                return content[_TIME:] if not ends or time.time() < ends else None
        return None

    def is_newest(self, sealed: bytes, purpose: str) -> bool:
        """Whether it was sealed with the first key."""
        return _opened(self._ciphers[0], sealed, purpose) is not None


def _opened(cipher: AESGCM, sealed: bytes, purpose: str) -> bytes | None:
    try:
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
    except (InvalidTag, ValueError):
        return None


def _kept(path: Path) -> list[str]:
    """The keys in a file that only its owner reads; whoever of several processes comes first makes it.

    Raises:
        StartupError: the file holds no key, as a power cut may leave it; an empty key would open for everybody.
    """
    if not path.exists():
        _make(path)
    text = path.read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    keys = lines if len(lines) > 1 else [text]
    if min(map(len, keys)) < _KEY_MIN:
        raise StartupError(f"{path} holds no key. Restore it from a backup, or delete it: second factors end with it.")
    return keys


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        fresh.touch(mode=0o600)
        with fresh.open("w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(fresh, path)  # unlike a rename it never replaces the key of another process
    finally:
        fresh.unlink(missing_ok=True)
