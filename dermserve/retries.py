"""When a call to Triton is sent again, and to which server: the part of both clients that waits for nothing itself."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tritonclient.utils import InferenceServerException

from dermserve.balancing import Balance
from dermserve.errors import DermserveError, InferenceUnavailable, Overloaded, RequestInvalid, from_wire

_RETRY_FOR_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_DOUBTED_S: Final = 3.0  # a server that hung gets no longer to show that it is back, while others answer
# What passes by itself: a server that is down, stops or loads. Python stubs that died are found by their message.
_PASSING: Final = ("UNAVAILABLE", "NOT_FOUND", "CANCELLED")
_BATCH_LIMIT: Final = re.compile(r"batch-size must be <= (\d+)")


class Attempts:
    """The servers to try for one call, in order, until one answers or none would.

    Args:
        balance: knows which servers answer.
        timeout_s: of the whole call, in seconds.
        images: in the request.
        hint: seconds that a sender should wait who finds every server full.
    """

    def __init__(
        self, balance: Balance, timeout_s: float, images: int = 1, hint: Callable[[], int | None] = lambda: None
    ) -> None:
        self._balance = balance
        self._start = self._began = time.monotonic()
        self._timeout_s = timeout_s
        self._images = images
        self._hint = hint
        self._pause_s = _FIRST_PAUSE_S
        self._tried: set[int] = set()
        self._server = -1
        self._rounds = 0
        self.failure: DermserveError = InferenceUnavailable()

    def __iter__(self) -> Iterator[int]:
        while self._rounds == 0 or self._elapsed_s < _RETRY_FOR_S:
            if self._server >= 0 and self._remaining_s <= 0:
                return
            self._server = self._balance.pick(self._tried)
            self._tried.add(self._server)
            self._began = time.monotonic()
            yield self._server
            if not self._untried:
                self._tried.clear()
                self._rounds += 1

    @contextmanager
    def calling(self) -> Iterator[float]:
        """Around one attempt: counts it while it is in flight, and gives the seconds that it may take."""
        with self._balance.calling(self._server):
            yield self._deadline_s
        self._balance.answered(self._server)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def _remaining_s(self) -> float:
        return self._timeout_s - self._elapsed_s

    @property
    def _untried(self) -> bool:
        """Whether a server is left that this round has not been sent to."""
        return len(self._tried) < len(self._balance)

    @property
    def _deadline_s(self) -> float:
        """Half of what remains while another server could answer if this one hangs."""
        if not self._untried:
            return max(0.001, self._remaining_s)
        doubted = self._balance.suspect(self._server) and self._balance.others(self._tried)
        return max(0.001, min(self._remaining_s / 2, _DOUBTED_S if doubted else self._remaining_s))

    def pause_after(self, error: InferenceServerException) -> float:
        """Note the failure; returns the seconds to wait before the next attempt.

        Raises:
            DermserveError: no further attempt would help.
        """
        self.failure = translate(error, self._images)
        if isinstance(self.failure, Overloaded):
            self.failure.retry_after = self._hint()
        down = isinstance(self.failure, InferenceUnavailable) and is_passing(error)
        if down or is_deadline(error):
            self._balance.failed(self._server, self._began)
        else:
            self._balance.answered(self._server)
        elsewhere = isinstance(self.failure, Overloaded) and self._untried  # full or hung, and another may not be
        if not (elsewhere or down) or self._remaining_s <= 0:
            raise self.failure from error
        if self._untried:
            return 0.0  # the next server may well be alive
        pause = random.uniform(0.5, 1.0) * self._pause_s  # noqa: S311  jitter, not a secret
        self._pause_s = min(2 * self._pause_s, 1.0)
        return min(pause, self._remaining_s)


def translate(error: InferenceServerException, images: int = 1) -> DermserveError:
    """What Triton or the connection to it says, as an error of ours."""
    message = error.message() or ""
    known = from_wire(message)
    if known is not None:
        refused, index = known
        return refused if index is None or images == 1 else type(refused)(f"image {index}: {refused.detail}")
    if "maximum queue size" in message or "timeout expired" in message:
        return Overloaded()
    if is_deadline(error):
        return Overloaded("The model server did not answer in time; please try again shortly.")
    if is_passing(error):
        return InferenceUnavailable()
    if "INVALID_ARGUMENT" in str(error.status()):
        limit = _BATCH_LIMIT.search(message)
        return RequestInvalid(
            f"At most {limit[1]} images go into one request." if limit else "The model server refuses such a request."
        )
    return InferenceUnavailable("The model server failed on this request.")


def is_deadline(error: InferenceServerException) -> bool:
    """Whether no answer came in time."""
    return "DEADLINE_EXCEEDED" in str(error.status())


def is_passing(error: InferenceServerException) -> bool:
    """Whether the same request may succeed soon; a model that is unknown or not ready may still be loading."""
    status, message = str(error.status()), (error.message() or "").lower()
    if "INTERNAL" in status:
        return "stub process" in message
    return status.removeprefix("StatusCode.") in _PASSING or "unknown model" in message or "is not ready" in message
