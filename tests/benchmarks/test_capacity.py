import pytest

from benchmarks.capacity import overload, search
from benchmarks.closed_loop import Window
from benchmarks.open_loop import Outcome, Run


class Server:
    """Keeps its p99 up to `carries` images/s; from `weakens_after` runs on only up to `then`."""

    def __init__(self, carries, weakens_after=10**9, then=0.0):
        self.carries, self.weakens_after, self.then = carries, weakens_after, then
        self.asked = []

    def arrive(self, *, rate, seconds, seed):
        self.asked.append((rate, seconds, seed))
        carries = self.carries if len(self.asked) <= self.weakens_after else self.then
        ms = 100.0 if rate <= carries else 5000.0
        return Run(rate, seconds, tuple(Outcome(0.0, ms, "right") for _ in range(100)))


def plan(server, **changes):
    return {
        "arrive": server.arrive, "reference": lambda: 40.0, "bound_ms": 1000.0, "trial_s": 1.0, "confirm_s": 2.0,
        "rounds": 3, **changes,
    }  # fmt: skip


def test_the_highest_share_that_keeps_the_bound_is_found_and_confirmed():
    server = Server(carries=34.3)

    found = search(**plan(server))

    assert 34.3 / 40 - 0.03 <= found.share <= 34.3 / 40
    assert found.rate == pytest.approx(40 * found.share)
    assert [seconds for _, seconds, _ in server.asked[-3:]] == [2.0] * 3
    assert len({seed for _, _, seed in server.asked}) == len(server.asked)


def test_rates_follow_the_limit_as_the_machine_drifts():
    server, speeds = Server(carries=10**9), iter([40.0, 20.0] + [30.0] * 50)

    search(**plan(server, reference=lambda: next(speeds)))

    shares = [0.6, 0.85]
    assert [rate for rate, _, _ in server.asked[:2]] == pytest.approx([40 * shares[0], 20 * shares[1]])


def test_a_share_that_is_not_confirmed_is_lowered():
    server = Server(carries=34.0, weakens_after=6, then=33.0)

    found = search(**plan(server))

    assert 40 * found.share <= 33.0
    assert found.share == pytest.approx(0.95 * max(run.rate for run in found.trials if run.percentile(99) < 1000) / 40)


def test_a_server_that_keeps_no_rate_has_no_capacity():
    found = search(**plan(Server(carries=0.0)))

    assert (found.share, found.rate, found.runs) == (0.0, 0.0, [])


def test_a_refused_image_is_later_than_any_bound():
    def arrive(*, rate, seconds, seed):
        outcomes = [Outcome(0.0, 5.0, "right")] * 98 + [Outcome(0.0, 5.0, "refused", "503")] * 2
        return Run(rate, seconds, tuple(outcomes))

    assert search(**plan(Server(0), arrive=arrive)).share == 0.0


@pytest.fixture
def overloaded():
    """What an overload made of a server that answers 30 to 34 images/s, asked for by its `capacity`."""

    def run(capacity):
        windows, asked = iter([Window(300, 0, 10.0, ()), Window(340, 0, 10.0, ())]), []

        def arrive(*, rate, seconds, seed):
            asked.append(rate)
            return Run(rate, seconds, tuple(Outcome(number / 32, 500.0, "right") for number in range(300)))

        found = overload(arrive, lambda: next(windows), capacity=capacity, factor=3, seconds=10.0, seed=0)
        return found, asked

    return run


def test_goodput_under_overload_is_a_share_of_the_windows_beside_it(overloaded):
    found, _ = overloaded(28.0)

    assert found.peak == 32
    assert found.share(1000) == pytest.approx(300 / 320)
    assert found.share(100) == 0


@pytest.mark.parametrize(("capacity", "rate"), [(2.0, 90.0), (31.0, 93.0), (0.0, 90.0)])
def test_a_capacity_that_was_found_too_low_does_not_make_an_overload_into_none(overloaded, capacity, rate):
    _, asked = overloaded(capacity)

    assert asked == [rate]
