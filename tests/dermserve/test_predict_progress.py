from __future__ import annotations

import pytest

from dermserve.predict.progress import Meter, Rate, duration


def test_the_rate_is_of_the_last_minute() -> None:
    now = [0.0]
    rate, finished = Rate(lambda: now[0]), 0
    for _ in range(300):  # ten a second for five minutes
        now[0] += 1.0
        finished += 10
        assert rate.per_s(finished) == pytest.approx(10.0)
    for _ in range(61):  # and one a second since
        now[0] += 1.0
        finished += 1
        latest = rate.per_s(finished)
    assert latest == pytest.approx(1.0, rel=0.2)


def test_a_line_tells_how_far_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [0.0]
    meter = Meter(10_000, 2_000, lambda: 12, lambda: silent[0])
    meter.finished, meter.refused = 2_000, 3
    monkeypatch.setattr(meter, "_rate", Rate(iter([0.0] + [20.0] * 20).__next__))
    assert meter.line() == (
        "4,000 of 10,000 images (40 %), 100.0 images/s, about 60 s left, 12 at a time, 3 refused"
    )  # fmt: skip
    silent[0] = 300.0
    assert "no answer for 5 min" in meter.line()


def test_without_an_end_none_is_estimated() -> None:
    meter = Meter(None, 5, lambda: 4, lambda: 0.0)
    assert meter.line().startswith("5 images, ")
    assert "left" not in meter.line()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5_300, "88 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said
