"""`dermserve predict --watch` as a process on a real drop folder."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dermserve.settings import REPOSITORY_ROOT
from tests.dermserve.test_client import serving
from tests.dermserve.test_predict_resume import by_content

SETTLE_S = 0.6


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def rows(path: Path) -> list[tuple[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(row[0], float(row[1])) for row in list(csv.reader(file))[1:]]


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


class Watching:
    """A `predict --watch` of its own process; `stop` returns its exit status and what it said."""

    def __init__(self, drop: Path, out: Path, url: str) -> None:
        options = ["--settle", str(SETTLE_S), "--every", "0.05", "--resume"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dermserve", "predict", "--watch", str(drop), "--csv", str(out), "--url", url, *options],
            cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self._process.send_signal(number)
        said = self._process.communicate(timeout=20)[0]
        return self._process.returncode, said


@pytest.fixture
def url() -> Iterator[str]:
    with serving(by_content) as address:
        yield address


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


def test_files_are_taken_as_they_come_and_a_signal_ends_it_well(url: str, drop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    (drop / "first.jpg").write_text("0.1")
    watching = Watching(drop, out, url)
    until(lambda: rows(out) == [("first.jpg", 0.1)])
    (drop / "deep").mkdir()
    (drop / "deep/second.jpg").write_text("0.2")
    (drop / "notes.txt").write_text("0.3")
    (drop / ".half.jpg").write_text("0.3")
    until(lambda: len(rows(out)) == 2)
    code, said = watching.stop()
    assert code == 0, said
    assert rows(out) == [("first.jpg", 0.1), ("deep/second.jpg", 0.2)]
    (drop / "third.jpg").write_text("0.3")
    watching = Watching(drop, out, url)
    until(lambda: len(rows(out)) == 3)
    code, said = watching.stop(signal.SIGINT)
    assert code == 0, said
    assert rows(out)[2:] == [("third.jpg", 0.3)]


def test_a_file_that_is_still_written_waits_and_one_that_is_moved_in_does_not(
    url: str, drop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    watching = Watching(drop, out, url)
    (drop / "ready.jpg").write_text("0.1")
    until(lambda: len(rows(out)) == 1)
    written = threading.Event()

    def write_slowly() -> None:
        with (drop / "slow.jpg").open("w") as file:
            for character in "0.2500000":
                file.write(character)
                file.flush()
                time.sleep(SETTLE_S / 3)
        written.set()

    thread = threading.Thread(target=write_slowly)
    thread.start()
    whole = tmp_path / "whole.jpg"
    whole.write_text("0.3")
    os.utime(whole, (1_700_000_000, 1_700_000_000))  # as it is with what was written a while ago
    began = time.monotonic()
    whole.rename(drop / "moved.jpg")
    until(lambda: len(rows(out)) == 2)
    took = time.monotonic() - began
    assert rows(out)[1] == ("moved.jpg", 0.3)
    assert took < SETTLE_S + 0.3
    assert not written.is_set()
    thread.join()
    until(lambda: len(rows(out)) == 3)
    code, said = watching.stop()
    assert code == 0, said
    assert rows(out)[2] == ("slow.jpg", 0.25)
    assert not (tmp_path / "out.errors.csv").exists()


def test_a_file_that_is_replaced_is_scored_again(url: str, drop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    (drop / "a.jpg").write_text("0.1")
    (drop / "b.jpg").write_text("0.2")
    watching = Watching(drop, out, url)
    until(lambda: len(rows(out)) == 2)
    (drop / "a.jpg").write_text("0.9")
    until(lambda: rows(out) == [("a.jpg", 0.9), ("b.jpg", 0.2)])
    assert watching.stop()[0] == 0


def test_a_folder_that_goes_and_comes_back(url: str, drop: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "out.csv", tmp_path / "away"
    watching = Watching(drop, out, url)
    (drop / "a.jpg").write_text("0.1")
    until(lambda: len(rows(out)) == 1)
    drop.rename(away)
    time.sleep(0.5)
    away.rename(drop)
    (drop / "b.jpg").write_text("0.2")
    until(lambda: len(rows(out)) == 2)
    code, said = watching.stop()
    assert code == 0, said
    assert f"{drop} cannot be read (No such file or directory); waiting for it." in said
    assert rows(out) == [("a.jpg", 0.1), ("b.jpg", 0.2)]


def test_a_server_that_comes_late_is_waited_for(drop: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "out.csv", free_port()
    (drop / "a.jpg").write_text("0.1")
    watching = Watching(drop, out, f"127.0.0.1:{port}")
    until((tmp_path / "out.csv.journal").exists)
    time.sleep(7)  # longer than a run without --watch waits for a first answer
    assert not rows(out)
    with serving(by_content, port):
        until(lambda: rows(out) == [("a.jpg", 0.1)])
        code, said = watching.stop()
    assert code == 0, said


def test_a_watch_that_is_killed_goes_on_where_it_was(url: str, drop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for turn in range(4):
        watching = Watching(drop, out, url)
        for number in range(20):
            (drop / f"{turn}-{number:02d}.jpg").write_text(f"0.{turn}{number:02d}1")
        until(lambda turn=turn: len(rows(out)) > turn * 20 + 3)  # type: ignore[misc]
        watching.stop(signal.SIGKILL)
    watching = Watching(drop, out, url)
    (drop / "9-00.jpg").write_text("0.9001")
    until(lambda: len(rows(out)) == 81)
    assert watching.stop()[0] == 0
    found = rows(out)
    assert len(set(found)) == 81
    for name, figure in found:
        turn, number = name.removesuffix(".jpg").split("-")
        assert figure == pytest.approx(float(f"0.{turn}{number}1"))
