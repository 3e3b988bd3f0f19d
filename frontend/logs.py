"""Lines of the web server's log: when, how grave, what; and one for each refusal, up to a number a minute.

`web_log.json` gives them to uvicorn (`--log-config`). No line holds what a request sent: ids and words of ours only.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from starlette.requests import Request

from dermserve.errors import DermserveError, Forbidden, NotFound, RateLimited, Unauthenticated

WEB_LOG: Final = Path(__file__).with_name("web_log.json")
_A_MINUTE: Final = 60  # lines: somebody who guesses all day must not fill the disk
_log = logging.getLogger(__name__)


class UtcFormatter(logging.Formatter):
    """`2026-11-01T03:00:00.123Z WARNING words` (ISO 8601, UTC)."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  as it is called there
        del datefmt
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Refusals:
    """Writes a line for each request that was refused to somebody: wrong guesses, forged forms, what is another's."""

    def __init__(self) -> None:
        self._minute = 0
        self._written = 0
        self._left_out = 0

    def note(self, request: Request, error: DermserveError) -> None:
        """Write why, where and by whom; not of what says nothing about its sender, such as a mistyped address."""
        objects = [str(one) for one in request.path_params.values() if isinstance(one, UUID)]
        telling = isinstance(error, Forbidden | RateLimited | Unauthenticated) or (
            isinstance(error, NotFound) and objects
        )
        if not telling or not self._may_write():
            return
        caller = getattr(request.state, "caller", None)
        route = getattr(request.scope.get("route"), "path", "-")
        _log.warning(
            "refused %s: %s %s, account %s, key %s, object %s",
            error.code,
            request.method,
            route,
            caller.user_id if caller else "-",
            (caller.key_id if caller else None) or "-",
            " ".join(objects) or "-",
        )

    def _may_write(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            if self._left_out:
                _log.warning("refused %d more that are not written one by one", self._left_out)
            self._minute, self._written, self._left_out = minute, 0, 0
        if self._written >= _A_MINUTE:
            self._left_out += 1
            return False
        self._written += 1
        return True
