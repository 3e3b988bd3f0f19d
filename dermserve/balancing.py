"""Which of several servers takes the next call: the least busy one of those that answer.

A server that failed is left alone for a while, twice as long after every further failure, and then gets one call to show
that it is back (a circuit breaker; M. Nygard, Release It!, 2nd edition, §5.2). Where all have failed, the one whose time is
up first is asked all the same: refusing without asking would only add an outage of our own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_FIRST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 10.0


@dataclass
class _Server:
    in_flight: int = 0
    failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0

    @property
    def rest_s(self) -> float:
        return min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** (self.failures - 1)) if self.failures else 0.0


class Balance:
    """Keeps count of `servers` servers, named by their index; safe for threads."""

    def __init__(self, servers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = [_Server() for _ in range(servers)]
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._servers)

    def pick(self, besides: Collection[int] = ()) -> int:
        """The server that takes the next call, of all but `besides`; equally busy ones in turn.

        Raises:
            ValueError: `besides` leaves none.
        """
        with self._lock:
            now = self._clock()
            self._turn += 1
            left = [index for index in self._in_turn() if index not in besides]
            up = [index for index in left if self._servers[index].rests_until <= now]
            if not up:
                return min(left, key=lambda index: self._servers[index].rests_until)
            chosen = min(up, key=lambda index: self._servers[index].in_flight)
            # Where it failed before, this call alone finds out whether it is back.
            self._servers[chosen].rests_until = now + self._servers[chosen].rest_s
            return chosen

    def others(self, besides: Collection[int]) -> bool:
        """Whether a server that answers is left besides these."""
        with self._lock:
            return any(not one.failures for index, one in enumerate(self._servers) if index not in besides)

    def suspect(self, server: int) -> bool:
        """Whether a server's last call failed."""
        return self._servers[server].failures > 0

    @contextmanager
    def calling(self, server: int) -> Iterator[None]:
        """Count a call while it is in flight."""
        with self._lock:
            self._servers[server].in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._servers[server].in_flight -= 1

    def answered(self, server: int) -> None:
        """Note that a server answered, be it with a refusal of the image."""
        if self._servers[server].failures:
            with self._lock:
                self._servers[server].failures, self._servers[server].rests_until = 0, 0.0

    def failed(self, server: int, since: float) -> None:
        """Note that a server is down, or hung, as a call begun at `since` found out.

        Calls that were in flight when it failed fail with it, and count as one.
        """
        with self._lock:
            one, now = self._servers[server], self._clock()
            if one.failures and since < one.failed_at:
                return
            one.failures += 1
            one.failed_at, one.rests_until = now, now + one.rest_s

    def _in_turn(self) -> list[int]:
        count = len(self._servers)
        return [(self._turn + step) % count for step in range(count)]
