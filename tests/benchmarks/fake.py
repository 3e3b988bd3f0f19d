"""Small real servers and senders for tests of load generators; in a module, because a spawned process imports them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Sleeper:
    """Answers after `seconds`; every `stall_every`th call of a sender takes `stall_s`."""

    seconds: float
    stall_every: int = 0
    stall_s: float = 0.0

    def __call__(self) -> Callable[[bytes], None]:
        calls = 0

        def send(_picture: bytes) -> None:
            nonlocal calls
            calls += 1
            time.sleep(self.stall_s if self.stall_every and calls % self.stall_every == 0 else self.seconds)

        return send


def refusing_every_second() -> Callable[[bytes], None]:
    calls = 0

    def send(_picture: bytes) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)
        if calls % 2 == 0:
            raise RuntimeError("503 overloaded")

    return send


def unreachable() -> Callable[[bytes], None]:
    raise ConnectionError("nobody listens")


def busy() -> Callable[[bytes], None]:
    def send(_picture: bytes) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    return send


def only_distinct() -> Callable[[bytes], None]:
    def send(picture: bytes) -> None:
        with _lock:
            if picture in _seen:
                raise RuntimeError("seen before")
            _seen.add(picture)

    return send


_lock = threading.Lock()
_seen: set[bytes] = set()
