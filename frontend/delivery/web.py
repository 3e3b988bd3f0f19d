"""Reports over HTTP: STOW-RS to a DICOMweb server (PS3.18 §10.5) and signed messages to a webhook.

What an operator entered as an address must not reach further than it says: no redirect is followed, no proxy of the
environment used, the connection goes to an address that was checked, and of an answer little is read.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import httpx2

from frontend import outbox
from frontend.delivery.outcomes import RefusedError, TryLaterError, check_status
from frontend.networks import Networks, Refused
from frontend.reports import webhook

LONGEST_S: Final = 60.0
"""One attempt, whatever trickles in."""
_TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0)
_ANSWER_MAX: Final = 64 * 1024
_PASSING: Final = frozenset({408, 425, 429})
_PARTLY: Final = 202
_CONFLICT: Final = 409
_FAILED: Final = "00081198"  # Failed SOP Sequence
_REASON: Final = "00081197"  # Failure Reason


class Answer(NamedTuple):
    status: int
    retry_after_s: float
    body: bytes


class Web:
    """Connections to one destination: shared between two, TLS would have been checked for the name of only one of them."""

    def __init__(self, networks: Networks, trust: ssl.SSLContext) -> None:
        self._networks = networks
        self._client = httpx2.AsyncClient(
            verify=trust,
            trust_env=False,
            follow_redirects=False,
            timeout=_TIMEOUT,
            headers={"User-Agent": "dermserve", "Accept-Encoding": "identity"},  # nothing that grows when it is read
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send_message(self, url: str, content: bytes, *, content_type: str, secret: str, message_id: str) -> None:
        """Post a webhook's message, signed now.

        Raises:
            TryLaterError, RefusedError: it did not arrive.
        """
        headers = {"Content-Type": content_type, **webhook.signed(secret, message_id, int(time.time()), content)}
        _judge(await self._post(url, content, headers))

    async def store(self, url: str, report: bytes, *, token: str | None) -> None:
        """Store a part 10 file with the DICOMweb service at `url`.

        Raises:
            TryLaterError, RefusedError: it did not arrive.
        """
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
        content = head.encode() + report + f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        answer = await self._post(url.rstrip("/") + "/studies", content, headers)
        reason = _failure(answer.body)
        if reason is not None and (answer.status < 300 or answer.status == _CONFLICT):
            check_status(reason, "STOW-RS failure reason")
            return
        if answer.status == _PARTLY:
            raise RefusedError("STOW-RS answered 202 without saying what it did not store")
        _judge(answer)

    async def _post(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        asked = httpx2.URL(url)
        port = asked.port or (443 if asked.scheme == "https" else 80)
        try:
            async with asyncio.timeout(LONGEST_S):
                address = await self._networks.resolve(asked.host, port)
                request = self._client.build_request(
                    "POST",
                    asked.copy_with(host=address),
                    content=content,
                    headers={**headers, "Host": asked.netloc.decode("ascii")},
                    extensions={"sni_hostname": asked.host},
                )
                answer = await self._client.send(request, stream=True)
                try:
                    return Answer(answer.status_code, _retry_after(answer.headers), await _beginning(answer))
                finally:
                    await answer.aclose()
        except Refused as error:
            raise TryLaterError("its address lies in a network that nothing is sent to") from error
        except TimeoutError as error:
            raise TryLaterError("no answer in time") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise TryLaterError(f"no connection ({type(error).__name__})") from error


async def _beginning(answer: httpx2.Response) -> bytes:
    read = b""
    async for part in answer.aiter_raw():
        read += part
        if len(read) > _ANSWER_MAX:
            return b""
    return read


def _judge(answer: Answer) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    if status in _PASSING or status >= 500:
        raise TryLaterError(f"HTTP {status}", wait_s=answer.retry_after_s)
    raise RefusedError(f"HTTP {status}: redirects are not followed" if 300 <= status < 400 else f"HTTP {status}")


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds that the destination wants to be left alone (RFC 9110 §10.2.3), an hour at most; 0 where it says none."""
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said) if said.isdigit() else (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), outbox.LONGEST_S)


def _failure(body: bytes) -> int | None:
    """Why our one instance was not stored, of a store response in DICOM's JSON; None where it says nothing of the kind."""
    try:
        said: Any = json.loads(body)
        said = said[0] if isinstance(said, list) else said
        return int(said[_FAILED]["Value"][0][_REASON]["Value"][0])
    except (ValueError, LookupError, TypeError):
        return None
