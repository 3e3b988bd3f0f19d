"""Where a visitor may be sent on to."""

from __future__ import annotations

AFTER_LOGIN = "/upload"


def local(path: str, otherwise: str = AFTER_LOGIN) -> str:
    """`path` if it is one on this server, else another: nobody may be sent elsewhere by a link that looks like ours."""
    if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable():
        return path
    return otherwise
