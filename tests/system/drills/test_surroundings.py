"""What a machine does to a server: a full disk, a clock that jumps, a database behind a wire that is held up."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dermserve.settings import Settings
from tests.frontend.conftest import Cluster
from tests.system.drills import network
from tests.system.drills.drill import Outcome, run
from tests.system.drills.proxy import Proxy
from tests.system.stack import Stack

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
STALL_S = 6.0
FULL_S = 4.0


@contextmanager
def started(folder: Path, **environment: str) -> Iterator[Stack]:
    stack = Stack(folder / "state")
    repository = network.place(Settings().model_repository, folder / "model_repository")
    stack.environment |= {"DERMSERVE_MODEL_REPOSITORY": str(repository), **environment}
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 600 MB, a disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.slow
def test_the_databases_disk_is_full_for_a_while(small_disk: Path, drills: list[Outcome]) -> None:
    with started(small_disk) as stack:

        def fill() -> None:
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(b"\0" * 65536):
                        pass
                except OSError:
                    pass
            time.sleep(FULL_S)
            filler.unlink()

        outcome = run(stack, "the database's disk, full", fill, times=2)
    drills.append(outcome)
    outcome.check()
    assert set(outcome.refusals) <= {503}


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None and not os.environ.get("CI"), reason="libfaketime is not installed")
def test_the_clock_jumps(tmp_path: Path, drills: list[Outcome]) -> None:
    offsets = iter(["-1h", "+26h", "-3d"])
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # the kernel's does not jump
    }
    with started(tmp_path, **faked) as stack:
        outcome = run(stack, "the clock, set", lambda: clock.write_text(next(offsets)) and None, times=3)
    drills.append(outcome)
    outcome.check()


@pytest.mark.slow
def test_the_wire_to_the_database_is_held_up(tmp_path: Path, drills: list[Outcome]) -> None:
    cluster = Cluster()
    cluster.start()
    folder = tmp_path / "wire"
    folder.mkdir()
    proxy = Proxy(folder / ".s.PGSQL.5432", cluster.folder / ".s.PGSQL.5432")

    def stall() -> None:
        proxy.stall()
        time.sleep(STALL_S)
        proxy.flow()

    try:
        with started(tmp_path, DERMSERVE_DATABASE_URL=f"postgresql://postgres@/postgres?host={folder}") as stack:
            outcome = run(stack, "the wire to the database", stall, times=1)
    finally:
        cluster.stop()
        proxy.stop()
    drills.append(outcome)
    outcome.check()
