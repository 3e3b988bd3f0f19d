import json

import pytest

from benchmarks import report


def test_percentiles_are_measured_values_by_nearest_rank():
    hundred = [float(value) for value in range(1, 101)]

    assert report.percentiles(hundred[::-1]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert report.percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}
    assert report.percentiles([1.0, 2.0, 3.0, 1000.0]) == {"p50": 2.0, "p95": 1000.0, "p99": 1000.0}


def test_nothing_measured_has_no_percentiles():
    with pytest.raises(ValueError, match="no values"):
        report.percentiles([])


def test_a_result_carries_its_machine_and_its_date(tmp_path):
    path = report.write(tmp_path / "new" / "limit.json", {"model": 26.6}, report.machine())

    content = json.loads(path.read_text())
    assert content["model"] == 26.6
    assert content["machine"]["threads"] >= 1
    assert content["measured_at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("found", "at_least", "held"), [(0.92, True, True), (0.91, True, False), (2.5, False, True), (2.6, False, False)]
)
def test_a_bound_is_held_up_to_its_very_value(found, at_least, held):
    assert report.Bound("share", found, 0.92 if at_least else 2.5, at_least).held is held


def test_bounds_are_told_and_one_that_is_not_held_is_not_overlooked(tmp_path, capsys):
    bounds = [report.Bound("share", 0.95, 0.92), report.Bound("lost", 1, 0, at_least=False)]

    assert not report.conclude("serve", {"rows": {}}, bounds, report.machine(), tmp_path)
    assert report.conclude("lane", {}, bounds[:1], report.machine(), tmp_path)

    told = capsys.readouterr().out
    assert told.count("NOT HELD") == 1
    content = json.loads((tmp_path / "serve.json").read_text())
    assert content["held"] is False
    assert [one["held"] for one in content["bounds"]] == [True, False]
    assert json.loads((tmp_path / "lane.json").read_text())["held"] is True
