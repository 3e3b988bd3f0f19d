"""The commands from their options to their exit status; what they measure is put in place of the measuring."""

import contextlib
import json

import pytest
from click.testing import CliRunner

from benchmarks import lane, stack
from benchmarks.alternation import Series
from benchmarks.closed_loop import Window
from benchmarks.commands import bench
from dermserve import sample

NAMES = ("cold", "lane", "limit", "load", "serve", "transport")


def window(p95, failed=0):
    return Window(100, failed, 2.0, tuple([p95] * 100), {"503 overloaded": failed} if failed else {})


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(sample.jpeg(0))
    return tmp_path / "images"


@pytest.fixture
def run_lane(monkeypatch, tmp_path, images):
    """Run `bench lane` as if the person's p95 had been `busy` ms instead of 50, and the stream had lost `lost`."""

    def run(busy, lost, *arguments):
        found = lane.Lane(Series([window(busy)], [busy], [50.0]), [window(50.0)] * 2, [window(900.0, lost)])
        monkeypatch.setattr(stack, "running", contextlib.nullcontext)
        monkeypatch.setattr(lane, "measure", lambda *_, **__: found)
        command = ["lane", "--images", str(images), "--out", str(tmp_path / "out"), *arguments]
        return CliRunner().invoke(bench, command)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_shows_an_example(name):
    shown = CliRunner().invoke(bench, [name, "--help"])

    assert shown.exit_code == 0
    if name != "cold":
        assert f"dermserve bench {name}" in shown.output


@pytest.mark.parametrize(
    ("busy", "lost", "arguments", "status"),
    [
        (120.0, 0, (), 0),
        (130.0, 0, (), 1),
        (130.0, 0, ("--max-ratio", "3"), 0),
        (120.0, 1, (), 1),
        (130.0, 1, ("--quick",), 0),
    ],
)
def test_the_exit_status_tells_whether_the_bounds_hold(run_lane, tmp_path, busy, lost, arguments, status):
    ended = run_lane(busy, lost, *arguments)

    assert ended.exit_code == status, ended.output
    written = json.loads((tmp_path / "out/lane.json").read_text())
    assert written["held"] is ((busy <= 125 and lost == 0) or "--max-ratio" in arguments)
    assert written["images"].startswith("1 JPEGs of images/")
    assert written["quick"] is ("--quick" in arguments)
    assert (tmp_path / "out/lane.png").exists()


def test_a_folder_without_images_is_refused(tmp_path):
    ended = CliRunner().invoke(bench, ["limit", "--images", str(tmp_path)])

    assert ended.exit_code == 1
    assert "no JPEG" in ended.exception.detail
