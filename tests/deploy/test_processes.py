from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from deploy.processes import Child

# A parent that starts a child of its own and prints both ids; `stubborn` ignores SIGTERM.
PROGRAM = """
import os, signal, subprocess, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), inner.pid, flush=True)
time.sleep({life})
"""


def make(tmp_path: Path, *, life: float = 60, stubborn: bool = False) -> Child:
    program = PROGRAM.format(life=life, stubborn=stubborn)
    return Child("the child", [sys.executable, "-c", program], tmp_path / "log", os.environ, stop_timeout_s=1.0)


async def started(child: Child, lives: int = 1) -> list[int]:
    """The process ids that the child printed, once it has been started `lives` times."""
    for _ in range(200):
        lines = child.log_file.read_text().splitlines() if child.log_file.exists() else []
        if len(lines) >= lives:
            return [int(word) for word in lines[-1].split()]
        await asyncio.sleep(0.05)
    raise AssertionError("the child did not start")


def gone(pids: list[int]) -> bool:
    """Whether all have ended, or do so in a moment: a signal is sent before it is felt."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=3)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_it_and_all_that_it_started(tmp_path: Path, stubborn: bool) -> None:
    async def run() -> list[int]:
        child = make(tmp_path, stubborn=stubborn)
        await child.start()
        pids = await started(child)
        assert child.running
        await child.stop()
        assert not child.running
        return pids

    assert gone(asyncio.run(run()))


def test_it_is_started_again_after_its_death_without_leftovers(tmp_path: Path) -> None:
    cleaned = 0

    async def clean() -> None:
        nonlocal cleaned
        cleaned += 1

    async def run() -> tuple[list[int], list[int]]:
        child = make(tmp_path)
        child.clean = clean
        await child.start()
        watch = asyncio.create_task(child.keep_running())
        first = await started(child)
        psutil.Process(first[0]).kill()
        second = await started(child, lives=2)
        assert gone(first)
        watch.cancel()
        await child.stop()
        return first, second

    first, second = asyncio.run(run())
    assert set(first).isdisjoint(second)
    assert cleaned == 3, "before each start and after the stop"


def test_an_early_death_is_explained_by_this_runs_errors_alone(tmp_path: Path) -> None:
    program = "print('INFO start'); print('ERROR no licence'); print('INFO bye'); raise SystemExit(3)"
    (tmp_path / "log").write_text("ERROR of yesterday\n")

    async def run() -> str:
        child = Child("x", [sys.executable, "-c", program], tmp_path / "log", os.environ)
        await child.start()
        assert await child.wait() == 3
        return child.explanation()

    assert asyncio.run(run()) == "ERROR no licence"
