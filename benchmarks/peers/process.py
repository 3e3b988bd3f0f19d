"""One of the other servers as processes: started, waited for, weighed, and ended with all that it started."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.closed_loop import Send
from benchmarks.peers.catalogue import CHOICE, Peer
from benchmarks.stack import alive, free_ports, processes_of
from dermserve.errors import StartupError
from dermserve.settings import REPOSITORY_ROOT

ENVIRONMENT = REPOSITORY_ROOT / ".venv-peers"
_PATIENCE_S = 600.0
_POLL_S = 0.1
_STOP_S = 15.0
_CPU_POLL_S = 0.5
_PRIVATE = {  # nothing about this machine is told to anybody, and nothing listens beyond loopback
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # only then does Ray take 127.0.0.1 for the address of its node
}
# Ray's own patience of 5 s is too short on a machine that is busy with something else.
_PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120"}


class Server:
    """A server that is starting or running on loopback. Made by `serving`, which also ends it."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, port: int) -> None:
        self._process = process
        self._state = state
        self.port = port

    def until_right(self, connect: Callable[[], Send], picture: Any) -> None:
        """Wait for the first right answer.

        Raises:
            StartupError: the server ended, or gave none in time.
        """
        end = time.perf_counter() + _PATIENCE_S
        while True:
            try:
                connect()(picture)
                return
            except Exception as error:
                if self._process.poll() is not None or time.perf_counter() > end:
                    raise StartupError(
                        f"No right answer ({error}); the server's last lines:\n{self._last_lines()}"
                    ) from error
            time.sleep(_POLL_S)

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to the server."""
        return processes_of(self._process.pid, self._state)

    def stop(self) -> None:
        """Ask it to end, kill what does not, and wait until all is gone: the next window has the machine to itself."""
        members = self.processes()
        self._process.terminate()
        self._await_end(members)
        left = alive([*members, *self.processes()])
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._await_end(left)
        self._process.wait()

    def _await_end(self, members: Sequence[psutil.Process]) -> None:
        end = time.perf_counter() + _STOP_S
        while alive(members) and time.perf_counter() < end:
            self._process.poll()
            time.sleep(_POLL_S)

    def _last_lines(self) -> str:
        return "\n".join((self._state / "server.log").read_text(errors="replace").splitlines()[-15:])


def python() -> Path:
    """The Python that the servers run on.

    Raises:
        StartupError: they are not installed.
    """
    found = ENVIRONMENT / "bin/python"
    if not found.exists():
        raise StartupError("The servers to compare with are not installed: run `deploy/setup.sh peers`.")
    return found


def environment(choice: str, repository: Path) -> dict[str, str]:
    """What a server's processes see: which model to run inside (see `inside.py`), and one thread for each worker."""
    return os.environ | _PRIVATE | _PATIENT | {
        CHOICE: choice,
        "DERMSERVE_MODEL_REPOSITORY": str(repository.resolve()),
        "OMP_NUM_THREADS": "1",
        # Compiled kernels are kept, so that a server's start does not stand for the compiler's work.
        "TORCHINDUCTOR_CACHE_DIR": str(ENVIRONMENT / "torchinductor"),
        "PYTHONPATH": str(REPOSITORY_ROOT),  # this checkout, whichever one is installed
        "PYTHONUNBUFFERED": "1",
        # The port between Ray's replicas cannot be bound to loopback: nobody is to be let in by it.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # fmt: skip


@contextmanager
def serving(peer: Peer, choice: str, repository: Path) -> Iterator[Server]:
    """Start a server and do not wait; it and its files are gone on the way out.

    Raises:
        StartupError: the servers are not installed.
    """
    program = python().with_name(peer.command[0])
    with tempfile.TemporaryDirectory(prefix="dermserve-peer-", ignore_cleanup_errors=True) as folder:
        state, port = Path(folder), free_ports(1)[0]
        private = {"TMPDIR": folder, "BENTOML_HOME": folder}
        with (state / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [str(program), *(argument.format(port=port) for argument in peer.command[1:])],
                cwd=state, env=environment(choice, repository) | private, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            server = Server(process, state, port)
            try:
                yield server
            finally:
                server.stop()


class Spent(NamedTuple):
    """User and system seconds that the processes had spent, `at` a time of `time.perf_counter`."""

    at: float
    seconds: float


class CpuWatch:
    """Notes what a server's processes spend while the block runs; processes that start meanwhile are left out."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self.spent: list[Spent] = []

    def __enter__(self) -> CpuWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cores(self, began: float, ended: float) -> float:
        """Cores kept busy between two times, on average; 0 where too little was noted."""
        inside = [one for one in self.spent if began <= one.at <= ended]
        if len(inside) < 2:
            return 0.0
        return (inside[-1].seconds - inside[0].seconds) / (inside[-1].at - inside[0].at)

    def _note(self) -> None:
        while True:
            total = 0.0
            for process in self._processes:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
            self.spent.append(Spent(time.perf_counter(), total))
            if self._over.wait(_CPU_POLL_S):
                return
