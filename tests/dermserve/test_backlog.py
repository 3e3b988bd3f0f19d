from __future__ import annotations

import contextlib

from dermserve.backlog import Backlog
from dermserve.errors import Overloaded


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answered(backlog: Backlog, clock: Clock, images: int, seconds: float) -> None:
    with backlog.of(images, bulk=True):
        clock.now += seconds


def test_the_hint_is_what_is_in_flight_times_the_time_an_image_takes() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    for _ in range(50):
        answered(backlog, clock, images=4, seconds=1.0)
        clock.now += 60  # idle time between requests says nothing about speed
    with backlog.of(40, bulk=True), backlog.of(12, bulk=False):
        assert backlog.retry_after_s(bulk=True) == 13  # 52 × 0.25 s
        assert backlog.retry_after_s(bulk=False) == 3  # bulk images do not stand before a person's
    assert backlog.retry_after_s(bulk=True) == 1, "never at once"


def test_the_hint_follows_the_speed_and_stays_bounded() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    assert backlog.retry_after_s(bulk=True) > 0, "before the first answer, too"
    answered(backlog, clock, images=1, seconds=0.01)
    for _ in range(60):
        answered(backlog, clock, images=1, seconds=2.0)
    with backlog.of(10, bulk=True):
        assert backlog.retry_after_s(bulk=True) == 20
        with backlog.of(10_000, bulk=True):
            assert backlog.retry_after_s(bulk=True) == 60


def test_refusals_are_no_answers() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    answered(backlog, clock, images=1, seconds=1.0)
    with backlog.of(8, bulk=True):
        for _ in range(100):
            with contextlib.suppress(Overloaded), backlog.of(1, bulk=True):
                raise Overloaded
        assert backlog.retry_after_s(bulk=True) == 8
