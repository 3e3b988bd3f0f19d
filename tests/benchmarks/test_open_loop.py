import math
import time

import numpy as np
import pytest

from benchmarks.images import endless
from benchmarks.open_loop import Outcome, Run, Target, arrivals, drive, judged
from dermserve import sample
from tests.benchmarks import fake


@pytest.fixture(scope="module")
def pictures():
    return endless([sample.jpeg(0)])


def test_arrivals_are_a_poisson_process_drawn_from_the_seed():
    times = arrivals(100.0, 200.0, seed=1)
    gaps = np.diff(times)

    assert times.size == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)  # exponential: as much as the mean
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 200
    assert np.array_equal(times, arrivals(100.0, 200.0, seed=1))
    assert not np.array_equal(times[:100], arrivals(100.0, 200.0, seed=2)[:100])


def stalling_once(number, image):
    if number == 10:
        time.sleep(1.0)
    return 201, {}, fake.answer(image)


def test_a_stall_is_felt_by_every_image_that_was_due_during_it(pictures):
    with fake.Api(stalling_once) as api:
        run = drive(Target(api.url), pictures, rate=40, seconds=2.0, seed=3, warm_up_s=0.0)

    assert run.count("right") == len(run.outcomes) == arrivals(40, 2.0, 3).size
    assert run.percentile(99) >= 900
    # A closed loop with one sender would show it in a single answer out of all these.
    assert sum(one.ms > 300 for one in run.outcomes) >= 20


def test_an_image_that_was_sent_late_counts_from_when_it_was_due():
    with fake.Api() as api:
        run = drive(Target(api.url), fake.HoldsUp(sample.jpeg(0), 3.0), rate=20, seconds=3.0, seed=3, warm_up_s=0.0)

    assert run.late_ms >= 2500
    assert sum(one.ms > 1500 for one in run.outcomes) >= 15


def refusing(number, image):
    problem = b'{"code": "overloaded"}'
    match number % 3:
        case 0:
            return 503, {"Retry-After": "1"}, problem
        case 1:
            return 503, {}, problem
        case _:
            return 201, {}, fake.answer(image)


def test_a_refusal_counts_as_one_only_if_it_says_when_to_come_back(pictures):
    with fake.Api(refusing) as api:
        run = drive(Target(api.url), pictures, rate=60, seconds=1.0, seed=0, warm_up_s=0.0)

    third = len(run.outcomes) / 3
    assert [run.count(kind) for kind in ("right", "refused", "wrong")] == pytest.approx([third] * 3, abs=1)
    assert set(run.faults) == {"503 overloaded", "503 overloaded, without a Retry-After"}
    assert run.percentile(99) == math.inf
    assert run.as_rows(1000)["p99_ms"] is None


@pytest.mark.parametrize(
    ("status", "headers", "fault", "kind"),
    [
        (201, {}, None, "right"),
        (429, {"retry-after": "3"}, "429 rate_limited", "refused"),
        (503, {"retry-after": "soon"}, "503 overloaded", "wrong"),
        (500, {"retry-after": "3"}, "500 internal_error", "wrong"),
        (201, {}, "201, but the result belongs to another image", "wrong"),
        (0, {}, "no answer", "wrong"),
    ],
)
def test_what_an_answer_counts_as(status, headers, fault, kind):
    assert judged(0.0, 5.0, status, headers, fault).kind == kind


def test_a_server_that_is_not_there_answers_nothing(pictures):
    run = drive(Target("http://127.0.0.1:9"), pictures, rate=20, seconds=0.5, seed=0, warm_up_s=0.0)

    assert run.count("wrong") == len(run.outcomes) > 0


def test_goodput_is_what_came_in_time_and_within_the_window():
    run = Run(
        rate=2,
        seconds=2.0,
        outcomes=(
            Outcome(-0.5, 1000.0, "right"),  # due in the warm-up, answered in the window
            Outcome(0.5, 100.0, "right"),
            Outcome(0.6, 1200.0, "right"),  # too late
            Outcome(1.9, 500.0, "right"),  # after the end
            Outcome(1.0, 10.0, "refused", "503"),
        ),
    )

    assert run.goodput(1000) == 1.0
    assert run.goodput(2000) == 1.5
    assert (run.count("right"), run.count("refused")) == (3, 1)


def test_percentiles_leave_out_the_warm_up_but_a_wrong_answer_in_it_counts():
    run = Run(1, 1.0, (Outcome(-1.0, 9.0, "wrong", "500"), Outcome(0.1, 7.0, "right")))

    assert run.percentile(99) == 7.0
    assert run.count("wrong") == 1
