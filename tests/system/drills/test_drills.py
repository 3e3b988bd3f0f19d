"""A stream of 2,000 distinct images by 16 senders, while parts get SIGKILL at random moments and come back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest

from dermserve.settings import Settings
from tests.system.drills import network
from tests.system.drills.stream import Outcome, at_random_moments, compare, images, send, stored_rows
from tests.system.stack import Stack

IMAGES = 2_000
RATE = 250.0  # images/s: the stream then lasts for eight seconds and more, in which parts die and come back
KILLS = 3
PATIENCE_S = 120.0


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
    "PostgreSQL": lambda process: process.name() == "postgres" and "-D" in process.cmdline(),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_stream_outlives_what_is_killed(hospital: Stack, part: str, drills: list[Outcome]) -> None:
    name = part.lower().replace(" ", "-").replace("'", "")
    api_key = hospital.create_api_key(name)
    files = images(IMAGES, seed=sorted(PARTS).index(part))
    killed: list[int] = []

    def kill() -> None:
        for process in named(hospital, PARTS[part])[:1]:
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)

    faults = at_random_moments(kill, KILLS, IMAGES / RATE, seed=7)
    sent = send(hospital.url, api_key, files, rate=RATE, patience_s=PATIENCE_S)
    faults.join()
    hospital.wait_for(200, 60)
    database_url = (hospital.state_dir / "database.url").read_text()
    outcome = compare(part, len(killed), sent, files, stored_rows(database_url, f"service:{name}"))
    drills.append(outcome)
    assert len(killed) == KILLS
    outcome.check(IMAGES)
