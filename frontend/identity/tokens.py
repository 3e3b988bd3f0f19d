"""Random tokens: sessions, API keys, mailed links.

256 random bits each, for which one SHA-256 is enough: there is nothing to guess, and what the tables hold cannot be used
as it is.
"""

from __future__ import annotations

import hashlib
import secrets


def new_token() -> str:
    """43 characters that are safe in addresses, headers and cookies."""
    return secrets.token_urlsafe(32)


def fingerprint(token: str) -> bytes:
    """What is stored of a token: its SHA-256."""
    return hashlib.sha256(token.encode()).digest()
