"""The HTTP API as a door: TLS, a key, and a repeat that costs nothing because the image's own digest is its key."""

from __future__ import annotations

import json
import math
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from dermserve import labels
from dermserve.errors import (
    BY_CODE,
    DermserveError,
    Forbidden,
    ImageError,
    ImageTooLarge,
    InferenceUnavailable,
    Overloaded,
    RateLimited,
    RequestInvalid,
    Unauthenticated,
    Unavailable,
)
from dermserve.predict.outcome import Scores

_TIMEOUT: Final = httpx2.Timeout(60.0, connect=5.0)
_PASSING: Final = (408, 425, 429)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class ApiDoor:
    """`POST /v1/predictions`. Create it inside a running event loop.

    No proxy of the environment is used, as with gRPC. Certificates are checked against the system's authorities, to which
    `SSL_CERT_FILE` adds.

    Args:
        url: https://host[:port][/prefix].
        key: the API key; it is sent to this server alone, and shown nowhere.
        concurrency: connections at most.
        full: keep all that a result holds, and not only what the CSV needs.
    """

    def __init__(self, url: str, key: str, *, concurrency: int, full: bool) -> None:
        self.title = url
        self.models: set[str] = set()
        self._full = full
        self._reason = ""
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"},
            verify=ssl.create_default_context(),
            timeout=_TIMEOUT,
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=False,
        )
        self._target = f"{url.rstrip('/')}/v1/predictions"

    async def score(self, data: bytes, sha256: str) -> Scores:
        """See `Door.score`; the result is committed on the server when this returns."""
        try:
            answer = await self._client.post(self._target, content=data, headers={"Idempotency-Key": sha256})
        except httpx2.TransportError as error:
            self._reason = str(error) or type(error).__name__
            raise InferenceUnavailable from error
        if answer.status_code not in (200, 201):
            raise _refusal(answer)
        return self._scores(answer, sha256)

    def _scores(self, answer: httpx2.Response, sha256: str) -> Scores:
        try:
            result: dict[str, Any] = answer.json()
            values = [float(result["probabilities"][column.lower()]) for column in labels.COLUMNS]
            digest, abstained = result["image"]["sha256"], bool(result["quality"]["abstained"])
            model = f"{result['model']['name']} {result['model']['version']}"
        except (ValueError, TypeError, LookupError) as error:
            raise InferenceUnavailable("The server's answer is no result.") from error
        # Neither a proxy's mix-up nor a wrong row in a cache may put another image's figures beside this name.
        if digest != sha256:
            raise InferenceUnavailable("The server answered with the result of another image.")
        if not all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values):
            raise InferenceUnavailable("The server's answer holds figures that are no probabilities.")
        self.models.add(model)
        return Scores(values, abstained=abstained, document=json.dumps(result) if self._full else None)

    def nobody(self) -> str:
        """See `Door.nobody`."""
        return f"No dermserve answers at {self.title}" + (f" ({self._reason})." if self._reason else ".")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _refusal(answer: httpx2.Response) -> DermserveError:
    """The error of the tree that an answer stands for."""
    status, wait = answer.status_code, _retry_after(answer.headers.get("Retry-After"))
    try:
        problem = answer.json()
        kind, detail = BY_CODE[problem["code"]], str(problem["detail"])
    except (ValueError, TypeError, LookupError):
        kind, detail = _by_status(status), f"The server answered with status {status}."
    if not issubclass(kind, ImageError) and (status in _PASSING or status >= 500) and not issubclass(kind, Unavailable):
        kind = RateLimited if status == 429 else InferenceUnavailable
    error = kind(detail)
    error.retry_after = wait
    return error


def _by_status(status: int) -> type[DermserveError]:
    """What a proxy on the way means, which knows nothing of our codes."""
    known = {401: Unauthenticated, 403: Forbidden, 413: ImageTooLarge, 429: RateLimited, 503: Overloaded}
    return known.get(status, Unavailable if status in _PASSING or status >= 500 else RequestInvalid)


def _retry_after(header: str | None) -> int | None:
    """Seconds, of a number or a date (RFC 9110 §10.2.3)."""
    if header is None:
        return None
    try:
        return max(0, int(header))
    except ValueError:
        pass
    try:
        return max(0, math.ceil(parsedate_to_datetime(header).timestamp() - time.time()))
    except ValueError:
        return None


def is_api(url: str) -> bool:
    """Whether --url names the HTTP API, and not Triton."""
    return url.startswith(("http://", "https://"))


def in_the_clear(url: str) -> bool:
    """Whether the key and the images could be read on their way.

    Raises:
        RequestInvalid: the address has no host, or holds a password or a query.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.query or parts.fragment or "," in url:
        raise RequestInvalid("--url takes one address of the HTTP API, https://host[:port]; the key is not part of it.")
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK
