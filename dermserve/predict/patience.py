"""When to stop waiting for a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dermserve.errors import DermserveError, InferenceUnavailable
from dermserve.predict.doors import Door, is_away

GIVE_UP_AFTER_S: Final = 300.0
"""A busy server answers something in that time; one that hangs never will."""
_START_S: Final = 5.0


class ServerAway(InferenceUnavailable):
    """Nothing was answered for too long; what was answered before is kept."""

    exit_status = 3


class Patience:
    """Since when all calls have failed; one answer, to whichever image, starts it anew.

    Args:
        door: for the words.
        give_up_after_s: None for five minutes, and only seconds while the server has answered nothing at all: it was
            probably never started.
        clock: in seconds.
    """

    def __init__(self, door: Door, give_up_after_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._door = door
        self._clock = clock
        self._start_s = _START_S if give_up_after_s is None else give_up_after_s
        self.limit_s = GIVE_UP_AFTER_S if give_up_after_s is None else give_up_after_s
        self.image_s = min(self.limit_s, GIVE_UP_AFTER_S)
        """How long one image may fail while others are answered, in seconds."""
        self._since: float | None = None
        self._began: float | None = None
        self.answers = 0

    def sending(self) -> None:
        """The first call begins the wait for a first answer."""
        if self._began is None:
            self._began = self._clock()

    @property
    def silent_s(self) -> float:
        """Seconds since the first call that failed, if none was answered since."""
        return 0.0 if self._since is None else self._clock() - self._since

    def answered(self) -> None:
        """The server scored an image, or refused it for good."""
        self._since = None
        self.answers += 1

    def failed(self, error: DermserveError, *, busy: bool) -> None:
        """A call came to nothing.

        Raises:
            ServerAway: it has lasted too long.
        """
        now = self._clock()
        self._since = now if self._since is None else self._since
        if not self.answers and not busy:
            if now - (self._began if self._began is not None else now) >= self._start_s:
                raise ServerAway(self._door.nobody() if is_away(error) else error.detail) from error
        elif now - self._since >= self.limit_s:
            minutes = self.limit_s / 60
            lasted = f"{minutes:.0f} minutes" if minutes >= 2 else f"{self.limit_s:g} s"
            last = "" if is_away(error) or busy else f" The last failure: {error.detail}"
            raise ServerAway(f"{self._door.title} has answered no request for {lasted}.{last}") from error
