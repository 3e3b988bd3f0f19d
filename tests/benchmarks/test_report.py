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
