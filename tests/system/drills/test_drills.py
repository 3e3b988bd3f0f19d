"""A stream of 2,000 distinct images by 16 senders, while parts get SIGKILL at random moments and come back."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from dermserve.settings import Settings
from tests.system.drills import network
from tests.system.drills.drill import Outcome, run
from tests.system.drills.ways import Dicom, Http
from tests.system.stack import Stack

KILLS = 3
DICOM = "the DICOM process"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with two web workers and the network whose answers are known beforehand."""
    folder = tmp_path_factory.mktemp("drills")
    stack = Stack(folder / "state")
    stack.environment["DERMSERVE_MODEL_REPOSITORY"] = str(
        network.place(Settings().model_repository, folder / "model_repository")
    )
    stack.environment["DERMSERVE_WORKERS"] = "2"
    stack.start()
    yield stack
    stack.stop()


def named(stack: Stack, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Processes of the stack; what is ending cannot be asked its name."""
    found = []
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):
            if wanted(process):
                found.append(process)
    return found


def is_worker(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


PARTS: dict[str, Callable[[psutil.Process], bool]] = {
    "Triton": lambda process: process.name() == "tritonserver",
    "a stub of Triton's": lambda process: "/melanoma/" in " ".join(process.cmdline()),
    "a web worker": is_worker,
    DICOM: lambda process: "frontend.dicom" in process.cmdline(),
    "PostgreSQL": lambda process: process.name() == "postgres" and "-D" in process.cmdline(),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_stream_outlives_what_is_killed(hospital: Stack, part: str, drills: list[Outcome]) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not (alive := named(hospital, PARTS[part])):
            time.sleep(0.02)  # it is still on its way back from the time before
        alive[0].send_signal(signal.SIGKILL)
        killed.append(alive[0].pid)

    outcome = run(hospital, part, kill, times=KILLS, way=Dicom if part == DICOM else Http)
    drills.append(outcome)
    assert len(killed) == KILLS
    outcome.check()
