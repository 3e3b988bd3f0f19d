"""A cold start: how long until the first prediction, and how much memory the whole stack then holds.

It starts the very command that a person starts, with a state folder and ports of its own, and stops all of it again.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import target
from benchmarks.images import drawn, endless
from dermserve.errors import StartupError

_PATIENCE_S = 180.0
_POLL_S = 0.05
_STOP_S = 30.0
_PORTS = ("PORT", "TRITON_GRPC_PORT", "TRITON_HTTP_PORT", "TRITON_METRICS_PORT", "DICOM_PORT")
# Settings that would make the stack use somebody else's parts, or ask for TLS.
_ELSEWHERE = ("DERMSERVE_DATABASE_URL", "DERMSERVE_TRITON_URL", "DERMSERVE_PUBLIC_URL")


@dataclass(frozen=True)
class Start:
    """One start. Times in seconds since the process was started; memory in GiB over all `processes`.

    `first_prediction_s` is when the first 201 had arrived; on a first start it includes making an API key
    (`key_s`), which needs a second Python process. `rss_gib` counts a page once per process that maps it, `pss_gib`
    once in all; the bound is on the larger. `left_behind`: processes that outlived SIGTERM.
    """

    ready_s: float
    key_s: float
    first_prediction_s: float
    predictions: int
    faults: int
    rss_gib: float
    pss_gib: float
    processes: int
    stopped_s: float
    left_behind: int

    def as_rows(self) -> dict[str, Any]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def measure(*, starts: int, predictions: int) -> list[Start]:
    """Start `starts` times on the same state folder, one after the other: the first one also sets up the database.

    Raises:
        StartupError: the stack ended, or did not become ready in time.
    """
    pictures = endless(drawn(8))
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dermserve-cold-")))
        key, found = "", []
        for _ in range(starts):
            key, start = _start_once(state, key, pictures, predictions)
            found.append(start)
        return found


def problems(starts: Sequence[Start], *, max_seconds: float, max_gib: float) -> list[str]:
    """What is beyond the bounds or went wrong, as lines for people; empty when all is well."""
    lines = []
    for number, start in enumerate(starts, 1):
        if start.first_prediction_s > max_seconds:
            lines.append(f"start {number}: the first prediction took {start.first_prediction_s:.1f} s")
        if start.rss_gib > max_gib:
            lines.append(f"start {number}: {start.rss_gib:.2f} GiB are resident")
        if start.faults:
            lines.append(f"start {number}: {start.faults} of {start.predictions} predictions were wrong")
        if start.left_behind:
            lines.append(f"start {number}: {start.left_behind} processes outlived the stack and were killed")
    return lines


def _start_once(state: Path, key: str, pictures: Iterator[bytes], predictions: int) -> tuple[str, Start]:
    ports = free_ports(len(_PORTS))
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    environment |= {f"DERMSERVE_{name}": str(port) for name, port in zip(_PORTS, ports, strict=True)}
    environment |= {"DERMSERVE_STATE_DIR": str(state), "DERMSERVE_HOST": "127.0.0.1"}
    began = time.perf_counter()
    with _serving(environment, state) as serve:
        _until_ready(serve, ports[0], state)
        ready_s = time.perf_counter() - began
        key_s = 0.0
        if not key:
            key = _create_key(environment)
            key_s = time.perf_counter() - began - ready_s
        faults = int(_predict(ports[0], key, next(pictures)) is not None)
        first_prediction_s = time.perf_counter() - began
        faults += sum(_predict(ports[0], key, next(pictures)) is not None for _ in range(predictions - 1))
        members = processes_of(serve.pid, state)
        rss, pss = memory(members)
        stopping = time.perf_counter()
        serve.terminate()
        with suppress(subprocess.TimeoutExpired):  # the process itself then counts as left behind
            serve.wait(_STOP_S)
        stopped_s = time.perf_counter() - stopping
        left = alive(members)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    start = Start(
        ready_s, key_s, first_prediction_s, predictions, faults,
        rss / 2**30, pss / 2**30, len(members), stopped_s, len(left),
    )  # fmt: skip
    return key, start


@contextmanager
def _serving(environment: dict[str, str], state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The running `dermserve serve`; whatever it started is gone on the way out, however that comes about."""
    with (state / "serve.log").open("ab") as log:
        serve = subprocess.Popen(_dermserve("serve"), env=environment, stdout=log, stderr=log)
        try:
            yield serve
        finally:
            members = processes_of(serve.pid, state)
            if serve.poll() is None:
                serve.terminate()
                with suppress(subprocess.TimeoutExpired):
                    serve.wait(_STOP_S)
            for process in alive(members):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            serve.wait()


def _dermserve(*arguments: str) -> list[str]:
    """The command line of this environment, whether or not it is on PATH."""
    command = Path(sys.executable).with_name("dermserve")
    found = str(command) if command.exists() else shutil.which("dermserve")
    if found is None:
        raise StartupError("The `dermserve` command is not installed in this environment.")
    return [found, *arguments]


def _until_ready(serve: subprocess.Popen[bytes], port: int, state: Path) -> None:
    end = time.perf_counter() + _PATIENCE_S
    while time.perf_counter() < end:
        if serve.poll() is not None:
            raise StartupError(f"`dermserve serve` ended with status {serve.returncode}:\n{_last_lines(state)}")
        try:
            if _request(port, "GET", "/readyz")[0] == 200:
                return
        except OSError:
            pass  # not listening yet
        time.sleep(_POLL_S)
    raise StartupError(f"`dermserve serve` was not ready after {_PATIENCE_S:.0f} s:\n{_last_lines(state)}")


def _last_lines(state: Path) -> str:
    return "\n".join((state / "serve.log").read_text(errors="replace").splitlines()[-15:])


def _create_key(environment: dict[str, str]) -> str:
    made = subprocess.run(
        _dermserve("admin", "create-api-key", "--name", "cold start"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    if made.returncode != 0:
        raise StartupError(f"`dermserve admin create-api-key` failed: {made.stderr.strip()[-500:]}")
    return made.stdout.split()[-1]


def _predict(port: int, key: str, picture: bytes) -> str | None:
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {key}"}
    status, body = _request(port, "POST", "/v1/predictions", picture, headers)
    return target.fault(status, body, picture)


def _request(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException:
        return 0, b""
    finally:
        connection.close()


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
