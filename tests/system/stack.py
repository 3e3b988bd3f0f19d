"""A real `dermserve serve` for tests: its own state directory and ports, the committed model, nothing simulated."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

DERMSERVE = str(Path(sys.executable).with_name("dermserve"))
START_TIMEOUT_S = 120


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


class Stack:
    """`start` waits for the line with the address; `stop` sends SIGTERM and returns the exit status."""

    def __init__(self, state_dir: Path) -> None:
        names = ("PORT", "DICOM_PORT", "TRITON_GRPC_PORT", "TRITON_HTTP_PORT", "TRITON_METRICS_PORT")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.state_dir = state_dir
        self.url = f"http://127.0.0.1:{self.ports['PORT']}"
        self.grpc = f"127.0.0.1:{self.ports['TRITON_GRPC_PORT']}"
        self.environment = {
            **os.environ,
            **{f"DERMSERVE_{name}": str(port) for name, port in self.ports.items()},
            "DERMSERVE_STATE_DIR": str(state_dir),
            "DERMSERVE_CPU_CORES": "2",  # the tests count stubs
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        self.process = subprocess.Popen(
            [DERMSERVE, "serve"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(
            target=lambda out: [lines.put(line) for line in out], args=(self.process.stdout,), daemon=True
        ).start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return lines.get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is None and time.monotonic() < deadline:
                    continue
            logs = "\n".join(path.read_text()[-2000:] for path in (self.state_dir / "logs").glob("*.log"))
            self.stop()
            raise AssertionError(f"the stack did not start:\n{logs}")

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def triton(self) -> psutil.Process:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # what is ending cannot be asked its name
                if process.name() == "tritonserver":
                    return process
        raise AssertionError("no tritonserver runs")

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DERMSERVE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **options,
        )

    def create_api_key(self, name: str = "test") -> str:
        made = self.run("admin", "create-api-key", "--name", name)
        assert made.returncode == 0, made.stderr
        return made.stdout.split()[-1]

    def request(self, method: str, path: str, data: bytes | None = None, **headers: str) -> Answer:
        request = urllib.request.Request(
            self.url + path, data, {name.replace("_", "-"): value for name, value in headers.items()}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, dict(answer.headers), _body(answer.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), _body(error.read()))

    def predict(self, data: bytes, key: str, query: str = "", **headers: str) -> Answer:
        headers = {"Content_Type": "image/jpeg", "Authorization": f"Bearer {key}"} | headers
        return self.request("POST", "/v1/predictions" + query, data, **headers)

    def wait_for(self, status: int, timeout_s: float, path: str = "/readyz") -> float:
        """Seconds until `path` answers with `status`."""
        start = time.monotonic()
        while time.monotonic() - start < timeout_s:
            try:
                if self.request("GET", path).status == status:
                    return time.monotonic() - start
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{path} did not turn {status} within {timeout_s} s")


def _body(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data
