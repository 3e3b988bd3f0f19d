import json

import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.commands import bench
from benchmarks.load import Plan, Request, plot, read, run, summarise
from dermserve.errors import StartupError
from tests.benchmarks import fake

KINDS = ("hospital", "clinician")


@pytest.fixture
def requests():
    """Ten good answers a second for two seconds, 100 ms each, and one failure at the end."""
    good = [Request("image", 1000 + number / 10, 100.0, None) for number in range(20)]
    return [*good, Request("image", 1001.9, 5.0, "503 overloaded")]


def test_throughput_counts_good_answers_only(requests):
    summary = summarise(requests)["image"]

    assert (summary["requests"], summary["failures"]) == (21, 1)
    assert summary["per_second"] == pytest.approx(10.0)
    assert summary["p99_ms"] == 100.0
    assert summary["faults"] == "503 overloaded"


def test_a_kind_that_only_failed_has_no_latency():
    summary = summarise([Request("image", 0.0, 3.0, "0")])["image"]

    assert summary["failures"] == 1
    assert "p50_ms" not in summary


def test_what_the_locust_file_notes_is_read_back(tmp_path, requests):
    samples = tmp_path / "requests.jsonl"
    samples.write_text("".join(json.dumps(request._asdict()) + "\n" for request in requests))

    assert read(samples) == requests


def test_the_plot_is_an_image_even_if_everything_failed(tmp_path, requests):
    for name, some in (("some", requests), ("none", requests[-1:])):
        with Image.open(plot(some, tmp_path / f"{name}.png")) as image:
            assert min(image.size) > 300


@pytest.mark.parametrize("driver", ["open", "locust"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--url", "http://192.0.2.1:8000", "--api-key", "derm_x"], "another machine"),
        (["--url", "http://127.0.0.1:9"], "needs an API key"),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused_before_it_starts(tmp_path, arguments, reason, driver):
    command = ["load", "--driver", driver, "--out", str(tmp_path), *arguments]
    result = CliRunner(env={"DERMSERVE_BENCH_API_KEY": ""}).invoke(bench, command)

    assert isinstance(result.exception, StartupError)
    assert reason in result.exception.detail
    assert not list(tmp_path.iterdir())


def test_a_day_has_its_hours_and_its_people(tmp_path):
    """Locust itself runs it: an hour of gateways, clinics with both, an evening of clinicians."""
    with fake.Api() as api:
        plan = Plan(api.url, users=4, seconds=12, kind="day", rate=2.0, allow_remote=False)
        requests = run(plan, "derm_key", tmp_path / "new" / "locust.html")

    began = min(request.start for request in requests)
    hours = {name: [24 * (one.start - began) / 12 for one in requests if one.name.startswith(name)] for name in KINDS}
    assert min(hours["hospital"]) < 6
    assert 7 < min(hours["clinician"]) < 16  # a busy machine starts users late
    assert "<html" in (tmp_path / "new" / "locust.html").read_text()
