"""Full disks, vanished folders, signals and other runs: what each costs `dermserve predict`, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from dermserve.errors import RequestInvalid
from dermserve.predict.files import FolderGone
from dermserve.predict.journal import Journal, JournalFault
from dermserve.settings import REPOSITORY_ROOT
from tests.dermserve.test_client import serving
from tests.dermserve.test_predict_resume import _hasty, by_content, figures, images, run  # noqa: F401  fixtures


@pytest.fixture
def url() -> Iterator[str]:
    with serving(by_content) as address:
        yield address


def test_two_runs_never_write_one_output(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1"), tmp_path / "out.csv"
    run(out, url, folder)
    other = Journal(tmp_path / "out.csv.journal")
    try:
        done = run(out, url, folder, "--resume")
    finally:
        other.close()
    assert isinstance(done.exception, JournalFault)
    assert "another dermserve predict writes this output" in done.exception.detail
    assert done.exception.exit_status == 4


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resumed"])
def test_a_run_under_way_is_left_alone(tmp_path: Path, resume: tuple[str, ...]) -> None:
    folder, out, asked = (
        images(tmp_path / "in", **{f"n{number}": "0.5" for number in range(9)}),
        tmp_path / "out.csv",
        0,
    )
    refused: list[tuple[str, int]] = []

    def meanwhile(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal asked
        asked += 1
        if asked == 4:
            other = start(out, "127.0.0.1:9", folder, *resume)
            refused.append((other.communicate(timeout=30)[0], other.returncode))
        return by_content(request, context)

    with serving(meanwhile) as address:
        assert run(out, address, folder, "--concurrency", 1).exit_code == 0
    assert "another dermserve predict writes this output" in refused[0][0]
    assert refused[0][1] == 4
    assert len(figures(out)) == 9


@contextmanager
def mounted(folder: Path, size: str = "4m") -> Iterator[Path]:
    """A file system of its own at `folder`, in memory; the mount point stays when it goes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root mounts a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_share_that_is_unmounted_ends_the_run_with_no_image_refused(tmp_path: Path) -> None:
    out, moved, asked = tmp_path / "out.csv", tmp_path / "moved", 0
    moved.mkdir()
    with mounted(tmp_path / "in") as folder:
        images(folder, **{f"n{number:02d}": f"0.{number:02d}" for number in range(30)})

        def unmount(request: Any, context: grpc.ServicerContext) -> Any:
            nonlocal asked
            asked += 1
            if asked == 10:
                subprocess.run(["mount", "--move", folder, moved], check=True)
            return by_content(request, context)

        with serving(unmount) as address:
            done = run(out, address, folder, "--concurrency", 2)
            subprocess.run(["mount", "--move", moved, folder], check=True)
            assert isinstance(done.exception, FolderGone), done.output
            assert not (tmp_path / "out.errors.csv").exists()
            assert run(out, address, folder, "--resume").exit_code == 0
    assert [float(figure) for figure in figures(out).values()] == [number / 100 for number in range(30)]


def test_a_folder_that_vanishes_ends_the_run_and_a_resume_does_the_rest(tmp_path: Path) -> None:
    names = {f"n{number:02d}": f"0.{number:02d}" for number in range(30)}
    folder, out, away, asked = images(tmp_path / "in", **names), tmp_path / "out.csv", tmp_path / "away", 0

    def vanish(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal asked
        asked += 1
        if asked == 10:
            folder.rename(away)
        return by_content(request, context)

    with serving(vanish) as address:
        done = run(out, address, folder, "--concurrency", 2)
        assert isinstance(done.exception, FolderGone)
        assert f"{folder}/ is not there any more" in done.exception.detail
        assert "continue with --resume" in done.exception.detail
        assert done.exception.exit_status == 4
        assert 0 < len(figures(out)) < 30
        assert not (tmp_path / "out.errors.csv").exists()
        away.rename(folder)
        assert run(out, address, folder, "--resume").exit_code == 0
    assert figures(out) == {f"{name}.jpg": f"{float(said):.6f}" for name, said in names.items()}


def start(out: Path, url: str, *arguments: object, blocks: str = "unlimited") -> subprocess.Popen[str]:
    """A process of its own; no file of it may become longer than `blocks` of 512 bytes."""
    command = [sys.executable, "-m", "dermserve", "predict", *map(str, arguments), "--csv", str(out), "--url", url]
    return subprocess.Popen(
        ["sh", "-c", 'ulimit -f "$0"; exec "$@"', blocks, *command],
        cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_table_that_grows_beyond_what_is_allowed_is_one_line_and_a_resume_does_the_rest(
    url: str, tmp_path: Path
) -> None:
    names = {f"n{number:03d}{'x' * 200}": "0.5" for number in range(600)}
    folder, out = images(tmp_path / "in", **names), tmp_path / "out.csv"
    # The list fits, and its log; the table or the journal does not.
    process = start(out, url, folder, blocks="900")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 4, said
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert run(out, url, folder, "--resume").exit_code == 0
    assert list(figures(out)) == [f"{name}.jpg" for name in names]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.parametrize("what", ["everything", "table"])
def test_a_disk_that_becomes_full_loses_nothing(tmp_path: Path, disk: Path, what: str) -> None:
    names = {f"n{number:03d}{'x' * 200}": f"0.{number:03d}" for number in range(300)}
    folder, out, asked = images(tmp_path / "in", **names), disk / "out.csv", 0
    if what == "table":  # the journal has room
        out = tmp_path / "out.csv"
        out.symlink_to(disk / "out.csv")

    def fill(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal asked
        asked += 1
        if asked == 40:
            with suppress(OSError), (disk / "filled").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
        return by_content(request, context)

    with serving(fill) as address:
        done = run(out, address, folder, "--concurrency", 2)
        assert isinstance(done.exception, RequestInvalid), done.output
        assert done.exception.exit_status == 4
        said = done.exception.detail
        assert "cannot be written: No space left" in said if what == "table" else "cannot be written: " in said
        assert "continue with --resume" in said
        assert 40 <= asked < 300
        before = asked
        (disk / "filled").unlink()
        done = run(out, address, folder, "--resume")
    assert done.exit_code == 0, done.output
    assert figures(out) == {f"{name}.jpg": f"{float(figure):.6f}" for name, figure in names.items()}
    assert asked - before < 300, "what was in the journal was not asked again"


def test_a_slow_image_holds_back_rows_and_no_image(tmp_path: Path) -> None:
    names = {f"n{number:02d}": f"0.{number:02d}" for number in range(30)}
    folder, out, asked, early = images(tmp_path / "in", **names), tmp_path / "out.csv", 0, [""]

    def first_is_slow(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal asked
        asked += 1
        if request.raw_input_contents[0].endswith(b"0.03"):
            while asked < 30:
                time.sleep(0.01)
            time.sleep(0.3)
            early[0] = out.read_text()
        return by_content(request, context)

    with serving(first_is_slow) as address:
        assert run(out, address, folder, "--concurrency", 4).exit_code == 0
    assert early[0].splitlines()[1:] == [f"n{number:02d}.jpg" + f",{number / 100:.6f}" * 4 for number in range(3)]
    assert list(figures(out).items()) == [(f"{name}.jpg", f"{float(said):.6f}") for name, said in names.items()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_what_is_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    names = {f"n{number:02d}": f"0.{number:02d}" for number in range(40)}
    folder, out, answered = images(tmp_path / "in", **names), tmp_path / "out.csv", 0

    def slowly(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal answered
        time.sleep(0.2)
        answered += 1
        return by_content(request, context)

    with serving(slowly) as address:
        process = start(out, address, folder, "--concurrency", 2)
        while not (out.exists() and out.read_text().count("\n") > 3):
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=20)[0]
        assert process.returncode == 130, said
        assert "images are left; continue with --resume." in said
        journal = Journal(tmp_path / "out.csv.journal")
        assert journal.counts().scored == answered, "what was in flight was waited for"
        journal.close()
        assert run(out, address, folder, "--resume").exit_code == 0
    assert figures(out) == {f"{name}.jpg": f"{float(said):.6f}" for name, said in names.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_images_are_listed_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "dermserve", "predict", "--from-file", "-", "--csv", str(out), "--url", "127.0.0.1:9"],
        cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not (tmp_path / "out.csv.journal").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(20) == 130
    process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_the_tables_of_another_run_are_replaced_leaves_them(url: str, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", a="0.1"), tmp_path / "out.csv"
    run(out, url, folder)
    whole = out.read_bytes()
    process = start(out, "127.0.0.1:9", folder, "--give-up-after", 60)
    while not (tmp_path / "out.csv.journal.new").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert out.read_bytes() == whole
    assert run(out, "127.0.0.1:9", folder, "--resume").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.abstained.csv", "out.csv", "out.csv.journal"]
