"""How long the work in flight will take: the hint that a refused sender gets."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SHORTEST_S: Final = 1
LONGEST_S: Final = 60
_UNKNOWN_S: Final = 5
_WEIGHT: Final = 0.1  # of the latest answer in the running mean: about the last ten count


class Backlog:
    """Images in flight by lane, and the mean time between the answers to them; safe for threads.

    The wait is pending images × time per image (Little's law). Other clients' traffic is in it, too: it slows the
    answers down.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pending = {False: 0, True: 0}
        self._image_s: float | None = None
        self._since = clock()

    @contextmanager
    def of(self, images: int, *, bulk: bool) -> Iterator[None]:
        """Count a request while it is in flight; one that leaves without an exception was answered."""
        with self._lock:
            if not any(self._pending.values()):
                self._since = self._clock()  # idle time is nobody's service time
            self._pending[bulk] += images
        answered = 0
        try:
            yield
            answered = images
        finally:
            with self._lock:
                self._pending[bulk] -= images
                if answered:
                    self._note(answered)

    def _note(self, images: int) -> None:
        now = self._clock()
        latest, self._since = (now - self._since) / images, now
        mean = self._image_s
        self._image_s = latest if mean is None else mean + _WEIGHT * (latest - mean)

    def images_in(self, seconds: float) -> float:
        """How many images are answered in so many seconds; without end while none was."""
        with self._lock:
            return seconds / self._image_s if self._image_s else math.inf

    def retry_after_s(self, *, bulk: bool) -> int:
        """Seconds after which what is in flight ahead of such a request is done: 1…60."""
        with self._lock:
            if self._image_s is None:
                return _UNKNOWN_S
            ahead = self._pending[False] + (self._pending[True] if bulk else 0)
            return min(LONGEST_S, max(SHORTEST_S, math.ceil(ahead * self._image_s)))
