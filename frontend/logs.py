"""Lines of the web server's log: when, how grave, what. No line holds what a request sent: ids and words of ours only.

`web_log.json` gives the classes to uvicorn (`--log-config`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from starlette.requests import Request

from dermserve.errors import DermserveError, Forbidden, NotFound, RateLimited, Unauthenticated

WEB_LOG: Final = Path(__file__).with_name("web_log.json")
_A_MINUTE: Final = 60
_log = logging.getLogger(__name__)


class UtcFormatter(logging.Formatter):
    """`2026-11-01T03:00:00.123Z WARNING words` (ISO 8601, UTC)."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  as it is called there
        del datefmt
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Sparing(logging.Filter):
    """Lets 60 lines of a kind pass in a minute: whoever guesses, or sends junk, all day must not fill the disk.

    The first of a later minute says how many of the one before were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._minute = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._before: Counter[tuple[str, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        minute, kind = int(time.monotonic() // 60), (record.name, str(record.msg))
        if minute != self._minute:
            self._minute, self._before, self._counts = minute, self._counts, Counter()
        self._counts[kind] += 1
        left_out = self._before.pop(kind, 0) - _A_MINUTE
        if left_out > 0:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like it before)", None
        return self._counts[kind] <= _A_MINUTE


def note_refusal(request: Request, error: DermserveError) -> None:
    """Write why, where and by whom somebody was refused: wrong guesses, forged forms, what is another's.

    Not what says nothing about its sender, such as a mistyped address.
    """
    objects = [str(one) for one in request.path_params.values() if isinstance(one, UUID)]
    guess = isinstance(error, Forbidden | RateLimited | Unauthenticated)
    if not guess and not (isinstance(error, NotFound) and objects):
        return
    caller = getattr(request.state, "caller", None)
    _log.warning(
        "refused %s: %s %s, account %s, key %s, object %s",
        error.code,
        request.method,
        getattr(request.scope.get("route"), "path", "-"),
        caller.user_id if caller else "-",
        (caller.key_id if caller else None) or "-",
        " ".join(objects) or "-",
    )
