"""How many requests are on the wire at once: as many as pay, and fewer as soon as a server says that it is busy."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

FIRST: Final = 4
MOST: Final = 256
_EPOCH_S: Final = 0.5
_REST_S: Final = 20.0
_GAIN: Final = 1.05  # more requests at once must bring this much, or they only wait in the server's queue
_LOSS: Final = 0.97  # fewer may cost this much
_SLOW_S: Final = 10.0  # an answer that takes longer comes near to the deadline of a request
_LONGEST_PAUSE_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.2


class Climb:
    """The search for the limit, fed with what each epoch brought.

    It doubles while that pays and rests where it stopped paying; from there it tries a little more and a little less in
    turn, because servers and their other clients change. A refusal halves the limit, and from then on it grows by one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(FIRST, most)
        self._base: tuple[int, float] | None = None  # limit and images/s that the present limit is compared with
        self._doubling = True
        self._cautious = False
        self._upward = True
        self._rests_until = 0.0

    def refused(self, now: float) -> None:
        """The server has no room."""
        self.limit = max(1, self.limit // 2)
        self._rest(now)
        self._doubling, self._cautious, self._upward = False, True, True

    def judge(self, now: float, rate: float, latency_s: float, *, full: bool) -> None:
        """An epoch is over. `rate` is in images/s, `latency_s` the mean; `full`: the limit was what held it back."""
        if latency_s > _SLOW_S and self.limit > 1:
            self.limit = max(1, self.limit * 3 // 4)
            self._doubling = False
            self._rest(now)
        elif self._base is None:
            if full and now >= self._rests_until:
                self._base = (self.limit, rate)
                self._step(now)
        elif not full and self.limit > self._base[0]:
            self._back(now)  # files do not come any faster
        elif self._pays(rate):
            self._base = (self.limit, rate)
            self._step(now)
        else:
            self._back(now)

    def _pays(self, rate: float) -> bool:
        assert self._base is not None
        return rate >= self._base[1] * (_GAIN if self.limit > self._base[0] else _LOSS)

    def _step(self, now: float) -> None:
        before = self.limit
        if self._doubling:
            self.limit = min(self.most, 2 * self.limit)
        elif self._upward:
            self.limit = min(self.most, self.limit + (1 if self._cautious else max(1, self.limit // 4)))
        else:
            self.limit = max(1, self.limit - max(1, self.limit // 4))
        if self.limit == before:
            self._turn(now)

    def _back(self, now: float) -> None:
        assert self._base is not None
        self.limit = self._base[0]
        self._turn(now)

    def _turn(self, now: float) -> None:
        self._doubling, self._upward = False, not self._upward
        self._rest(now)

    def _rest(self, now: float) -> None:
        self._base = None
        self._rests_until = now + _REST_S


class Sent(NamedTuple):
    """One request on the wire."""

    at: float
    generation: int


class Pace:
    """Lets requests onto the wire, the oldest image first. Each `enter` is followed by one of `answered`, `refused`, `gone`."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._climb = Climb(most)
        self._clock = clock
        self._flying = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._turn = 0
        self._paused_until = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._generation = 0
        self._begin(clock())

    @property
    def limit(self) -> int:
        """Requests that may be on the wire now."""
        return self._climb.limit

    @property
    def flying(self) -> int:
        return self._flying

    async def enter(self, position: int) -> Sent:
        """Wait for a place on the wire."""
        self._turn += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position, self._turn, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise
        return Sent(self._clock(), self._generation)

    def answered(self, sent: Sent) -> None:
        """The server scored the image, or refused it for good."""
        now = self._clock()
        self._answers += 1
        self._full += self._flying >= self.limit
        self._latency_s += now - sent.at
        self._pause_s = _FIRST_PAUSE_S
        if now - self._since >= _EPOCH_S and self._answers >= max(8, 2 * self.limit):
            limit, rate = self.limit, self._answers / (now - self._since)
            self._climb.judge(now, rate, self._latency_s / self._answers, full=self._full >= 0.8 * self._answers)
            self._generation += limit != self.limit
            self._begin(now)
        self._leave()

    def refused(self, sent: Sent, retry_after_s: float | None) -> None:
        """The server has no room; nobody sends before `retry_after_s` is over, or a pause that grows."""
        if sent.generation == self._generation:  # what was sent before the last change says nothing about it
            self._climb.refused(self._clock())
            self._generation += 1
            self._begin(self._clock())
        self._pause(retry_after_s)
        self._leave()

    def gone(self) -> None:
        """The request was abandoned."""
        self._leave()

    def _begin(self, now: float) -> None:
        self._since, self._answers, self._full, self._latency_s = now, 0, 0, 0.0

    def _pause(self, retry_after_s: float | None) -> None:
        now = self._clock()
        if retry_after_s is None:
            if now < self._paused_until:
                return
            retry_after_s = random.uniform(0.5, 1.0) * self._pause_s  # noqa: S311  jitter, not a secret
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        else:
            retry_after_s = max(_FIRST_PAUSE_S, retry_after_s) * random.uniform(1.0, 1.2)  # noqa: S311
        until = now + retry_after_s
        if until > self._paused_until:
            self._paused_until = until
            asyncio.get_running_loop().call_later(retry_after_s, self._admit)

    def _leave(self) -> None:
        self._flying -= 1
        self._admit()

    def _admit(self) -> None:
        if self._clock() < self._paused_until - 5e-3:
            return
        while self._waiting and self._flying < self.limit:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._flying += 1
                turn.set_result(None)
