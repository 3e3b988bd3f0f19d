"""Which server gets the next call, by a clock that the test turns."""

from __future__ import annotations

from collections import Counter

import pytest

from dermserve.balancing import Balance


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_equally_busy_servers_take_turns(clock: Clock) -> None:
    balance = Balance(3, clock)
    assert Counter(balance.pick() for _ in range(9)) == {0: 3, 1: 3, 2: 3}


def test_the_least_busy_server_gets_the_call(clock: Clock) -> None:
    balance = Balance(2, clock)
    with balance.calling(0), balance.calling(0), balance.calling(1):
        assert [balance.pick() for _ in range(3)] == [1, 1, 1]
    assert {balance.pick() for _ in range(2)} == {0, 1}


def test_a_server_that_failed_gets_one_call_after_a_rest_and_all_once_it_answered(clock: Clock) -> None:
    balance = Balance(2, clock)
    balance.failed(0, since=clock.now)
    assert {balance.pick() for _ in range(10)} == {1}
    clock.now += 0.6
    assert Counter(balance.pick() for _ in range(10))[0] == 1, "one call finds out, the others do not wait for it"
    balance.answered(0)
    assert {balance.pick() for _ in range(2)} == {0, 1}


def test_a_rest_grows_with_every_failure_up_to_ten_seconds(clock: Clock) -> None:
    balance = Balance(2, clock)
    rests = []
    for _ in range(7):
        began = clock.now
        balance.failed(0, since=began)
        while 0 not in {balance.pick() for _ in range(2)}:
            clock.now += 0.25
        rests.append(clock.now - began)
    assert rests[0] <= 0.75
    assert rests == sorted(rests)
    assert 9 < rests[-1] <= 10.5


def test_calls_in_flight_when_a_server_dies_count_as_one_failure(clock: Clock) -> None:
    balance = Balance(2, clock)
    began = clock.now
    clock.now += 0.01
    for _ in range(16):
        balance.failed(0, since=began)
    clock.now += 0.6
    assert 0 in {balance.pick() for _ in range(2)}


def test_where_all_failed_the_one_whose_rest_ends_first_is_asked(clock: Clock) -> None:
    balance = Balance(2, clock)
    balance.failed(1, since=clock.now)
    clock.now += 0.1
    balance.failed(0, since=clock.now)
    assert balance.pick() == 1
    assert balance.pick(besides=(1,)) == 0
