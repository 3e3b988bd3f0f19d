"""Which server may be put under load, and how an answer to a prediction is checked."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
from urllib.parse import urlsplit

from dermserve.errors import StartupError


def check(url: str, *, allow_remote: bool = False) -> str:
    """The base address to send to, without a trailing slash.

    Only a loopback address or `localhost` passes, so that nobody puts a hospital's server under load by a slip.

    Raises:
        StartupError: not an http(s) address, or another machine's and `allow_remote` is not set.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartupError(f"{url!r} is not an address like http://127.0.0.1:8000.")
    if not allow_remote and not _is_loopback(parts.hostname):
        raise StartupError(f"{parts.hostname} is another machine; say --allow-remote if it may be put under load.")
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may resolve to anything
        return False


def fault(status: int, body: bytes | str | None, image: bytes) -> str | None:
    """What is wrong with the answer to a first prediction of `image`; None if nothing is.

    `status` 0 says that the connection failed. Right is: 201, the SHA-256 of what was sent,
    Benign + Suspicious + Malignant = 1 and Melanoma ≤ Malignant.
    """
    if status == 0:
        return "no answer"
    try:
        answer = json.loads(body or b"")
    except ValueError:
        return f"{status}, and the body is not JSON"
    if not isinstance(answer, dict):
        return f"{status}, and the body is no JSON object"
    if status != 201:
        return f"{status} {answer.get('code', 'without a code')}"
    try:
        told = answer["image"]["sha256"]
        share = {name: float(answer["probabilities"][name]) for name in _COLUMNS}
    except (KeyError, TypeError, ValueError):
        return "201, but the result lacks a hash or a probability"
    if told != hashlib.sha256(image).hexdigest():
        return "201, but the result belongs to another image"
    total = share["benign"] + share["suspicious"] + share["malignant"]
    if not math.isclose(total, 1.0, abs_tol=1e-4):
        return "201, but the probabilities do not sum to 1"
    if not 0.0 <= share["melanoma"] <= share["malignant"] + 1e-6:
        return "201, but melanoma is not a part of malignant"
    return None


_COLUMNS = ("benign", "suspicious", "malignant", "melanoma")
