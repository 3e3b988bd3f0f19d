"""What every response and every state-changing request must carry: headers, the cookie's rules, CSRF tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermserve.errors import DermserveError, Forbidden
from dermserve.settings import Settings
from frontend import problems

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf_token"
OWN_SITES: Final = ("same-origin", "none")
"""What `Sec-Fetch-Site` says of a request that no other site made."""

_HEADERS: Final = {
    # Nothing inline, nothing from elsewhere: a hospital's network blocks it, and an injected tag must not run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HSTS: Final = "max-age=31536000; includeSubDomains"
_log = logging.getLogger(__name__)


class SessionCookie:
    """The one cookie: an opaque token. Before a login it only ties forms to a browser; at login it is replaced."""

    def __init__(self, settings: Settings) -> None:
        self.secure = is_https(settings)
        # The prefix makes browsers refuse this cookie from a sibling domain or without TLS (RFC 6265bis §4.1.3.2).
        self.name = "__Host-derm_session" if self.secure else "derm_session"

    def read(self, request: Request) -> str | None:
        return request.cookies.get(self.name)

    def write(self, response: Response, token: str, *, max_age_s: int | None = None) -> None:
        response.set_cookie(
            self.name, token, max_age=max_age_s, path="/", secure=self.secure, httponly=True, samesite="lax"
        )

    def clear(self, response: Response) -> None:
        response.delete_cookie(self.name, path="/", secure=self.secure, httponly=True, samesite="lax")


def is_https(settings: Settings) -> bool:
    """Whether users come by TLS, which a proxy in front ends."""
    return (settings.public_url or "").startswith("https://")


def csrf_token(cookie_token: str) -> str:
    """The synchroniser token of a session.

    Derived from the cookie's token, which only the browser holds: a page can be given it again at any time, it needs
    no storage, and neither the database nor this token leads back to the cookie.
    """
    digest = hmac.digest(cookie_token.encode(), b"csrf", hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def check_csrf(request: Request, cookie_token: str | None, sent: str | None) -> None:
    """Let a state-changing request of a browser pass only if one of our own pages made it.

    Raises:
        Forbidden: another site made it, or the page is older than the session.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in OWN_SITES:
        raise Forbidden("This request came from another site.")
    expected = csrf_token(cookie_token) if cookie_token else ""
    if not expected or not hmac.compare_digest(expected.encode(), (sent or "").encode()):
        raise Forbidden("This page is out of date. Please reload it and try again.")


class SecurityMiddleware:
    """Adds the headers to every response, and turns what nobody caught into a plain 500 that tells nothing."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._headers = _HEADERS | ({"Strict-Transport-Security": _HSTS} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                # Pages and results are for one person; scripts and styles are revalidated by their ETag.
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("unhandled error in %s", scope["method"])
            if started:
                raise
            response = problems.respond(Request(scope), DermserveError())
            await response(scope, receive, send_with_headers)
