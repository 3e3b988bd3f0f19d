"""A private `dermserve serve` to measure: state folder, ports and, where asked for, model repository of its own.

It is the very command that a person starts, from the checkout that this module belongs to, and may run beside a stack
that is already up.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from dermserve.errors import StartupError
from dermserve.settings import REPOSITORY_ROOT

_PATIENCE_S = 180.0
_POLL_S = 0.05
_STOP_S = 30.0
_PORTS = ("PORT", "TRITON_GRPC_PORT", "TRITON_HTTP_PORT", "TRITON_METRICS_PORT", "DICOM_PORT")
# Settings that would make the stack use somebody else's parts, or ask for TLS.
_ELSEWHERE = ("DERMSERVE_DATABASE_URL", "DERMSERVE_TRITON_URL", "DERMSERVE_PUBLIC_URL")
_COMMAND = (sys.executable, "-m", "dermserve")


class Stack:
    """A `dermserve serve` that is starting or running. Made by `starting` or `running`, which also end it."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, environment: Mapping[str, str]) -> None:
        self._process = process
        self._state = state
        self._environment = environment
        self.port = int(environment["DERMSERVE_PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc = f"127.0.0.1:{environment['DERMSERVE_TRITON_GRPC_PORT']}"
        self.triton_http = f"127.0.0.1:{environment['DERMSERVE_TRITON_HTTP_PORT']}"
        self.api_key = ""

    def until_ready(self) -> None:
        """Wait until `/readyz` answers 200.

        Raises:
            StartupError: the stack ended, or was not ready in time.
        """
        end = time.perf_counter() + _PATIENCE_S
        while time.perf_counter() < end:
            if self._process.poll() is not None:
                raise StartupError(
                    f"`dermserve serve` ended with status {self._process.returncode}:\n{self._last_lines()}"
                )
            try:
                if self.request("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass  # not listening yet
            time.sleep(_POLL_S)
        raise StartupError(f"`dermserve serve` was not ready after {_PATIENCE_S:.0f} s:\n{self._last_lines()}")

    def _last_lines(self) -> str:
        return "\n".join((self._state / "serve.log").read_text(errors="replace").splitlines()[-15:])

    def create_key(self) -> str:
        """Make an API key, which also becomes `api_key`.

        Raises:
            StartupError: the command failed.
        """
        made = subprocess.run(
            [*_COMMAND, "admin", "create-api-key", "--name", "benchmark"],
            env=dict(self._environment),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        if made.returncode != 0:
            raise StartupError(f"`dermserve admin create-api-key` failed: {made.stderr.strip()[-500:]}")
        self.api_key = made.stdout.split()[-1]
        return self.api_key

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one HTTP request on a connection of its own; status 0 where no answer came.

        Raises:
            OSError: nobody listens.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException:
            return 0, b""
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to the stack."""
        return processes_of(self._process.pid, self._state)

    def stop(self) -> list[psutil.Process]:
        """End it as a person would; returns what outlived that and had to be killed."""
        members = self.processes()
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):  # the process itself then counts as left behind
                self._process.wait(_STOP_S)
        left = alive(members)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        return left


@contextmanager
def starting(state: Path, settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Start `dermserve serve` on a state folder and do not wait; whatever it started is gone on the way out.

    Args:
        state: where its database, logs and sockets live; used again, the database is there already.
        settings: further `DERMSERVE_…` variables, by their full names.
    """
    ports = free_ports(len(_PORTS))
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    environment |= {f"DERMSERVE_{name}": str(port) for name, port in zip(_PORTS, ports, strict=True)}
    # Workers and Triton's stubs are to load this checkout, whichever one is installed.
    path = os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))
    environment |= {"DERMSERVE_STATE_DIR": str(state), "DERMSERVE_HOST": "127.0.0.1", "PYTHONPATH": path}
    environment |= dict(settings or {})
    with (state / "serve.log").open("ab") as log:
        process = subprocess.Popen([*_COMMAND, "serve"], env=environment, stdout=log, stderr=log)
        stack = Stack(process, state, environment)
        try:
            yield stack
        finally:
            stack.stop()


@contextmanager
def running(settings: Mapping[str, str] | None = None, *, repository: Path | None = None) -> Iterator[Stack]:
    """A stack that is ready and has an API key, on a state folder that is removed afterwards.

    Args:
        settings: further `DERMSERVE_…` variables, by their full names.
        repository: model repository to serve; by default the one of the settings.

    Raises:
        StartupError: it ended, or did not become ready in time.
    """
    extra = dict(settings or {})
    if repository is not None:
        extra["DERMSERVE_MODEL_REPOSITORY"] = str(repository.resolve())
    with tempfile.TemporaryDirectory(prefix="dermserve-bench-") as state, starting(Path(state), extra) as stack:
        stack.until_ready()
        stack.create_key()
        yield stack


class MemorySample(NamedTuple):
    """Bytes over all processes of a stack, `at` seconds after sampling began."""

    at: float
    rss: int
    pss: int


class MemoryWatch:
    """Samples a stack's memory while the block runs. RSS counts a page once per process that maps it, PSS once in all."""

    def __init__(self, stack: Stack, *, every_s: float = 1.0) -> None:
        self._stack = stack
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[MemorySample] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def peak(self) -> tuple[int, int]:
        """Largest RSS and largest PSS in bytes; zeros where nothing was sampled."""
        return (
            max((sample.rss for sample in self.samples), default=0),
            max((sample.pss for sample in self.samples), default=0),
        )

    def _sample(self) -> None:
        began = time.perf_counter()
        while True:
            self.samples.append(MemorySample(time.perf_counter() - began, *memory(self._stack.processes())))
            if self._over.wait(self._every_s):
                return


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports on loopback that nobody listened on a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:  # all bound before the first is closed: no port comes twice
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def processes_of(pid: int, state: Path) -> list[psutil.Process]:
    """The process `pid`, all below it, and any other that works inside the state folder, such as a detached server."""
    found: dict[int, psutil.Process] = {}
    try:
        root = psutil.Process(pid)
        found = {process.pid: process for process in (root, *root.children(recursive=True))}
    except psutil.NoSuchProcess:
        pass
    inside = state.resolve()
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(inside):
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return list(found.values())


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. A zombie does not: it holds nothing, and who reaps it is up to the system."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def memory(processes: Sequence[psutil.Process]) -> tuple[int, int]:
    """Resident and proportional set size in bytes, summed over the processes that still run."""
    rss = pss = 0
    for process in processes:
        try:
            full = process.memory_full_info()
        except psutil.Error:
            continue
        rss += full.rss
        pss += full.pss
    return rss, pss
