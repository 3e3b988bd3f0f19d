from dataclasses import replace

import pytest

from benchmarks.cold import Start, problems

GOOD = Start(
    ready_s=5.0,
    key_s=1.0,
    first_prediction_s=6.2,
    predictions=50,
    faults=0,
    rss_gib=1.0,
    pss_gib=0.8,
    processes=12,
    stopped_s=2.0,
    left_behind=0,
)


def test_bounds_that_hold_are_no_problem():
    assert problems([GOOD, GOOD], max_seconds=20, max_gib=2.5) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_prediction_s": 20.1}, "20.1 s"),
        ({"rss_gib": 2.6}, "2.60 GiB"),
        ({"faults": 1}, "1 of 50"),
        ({"left_behind": 2}, "2 processes"),
    ],
)
def test_each_bound_can_fail_on_any_start(change, said):
    lines = problems([GOOD, replace(GOOD, **change)], max_seconds=20, max_gib=2.5)

    assert len(lines) == 1
    assert lines[0].startswith("start 2:")
    assert said in lines[0]
