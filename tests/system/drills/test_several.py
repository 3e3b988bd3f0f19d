"""Two Triton servers behind one frontend: one is killed, comes back, hangs behind a wire that is held up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import repository
from deploy.triton import child
from dermserve.client import TritonClient
from dermserve.settings import REPOSITORY_ROOT, Settings
from tests.system.drills import network
from tests.system.drills.drill import Outcome, run
from tests.system.drills.proxy import Proxy
from tests.system.stack import Stack, free_ports

STALL_S = 4.0


class Server:
    """One Triton, without anybody who would start it again, behind a proxy whose address is `url`."""

    def __init__(self, folder: Path) -> None:
        models = network.place(Settings().model_repository, folder / "model_repository")
        grpc, http, metrics, proxied = free_ports(4)
        settings = Settings(
            state_dir=folder, model_repository=models, cpu_cores=1,
            triton_grpc_port=grpc, triton_http_port=http, triton_metrics_port=metrics,
        )  # fmt: skip
        repository.fit(models, settings)
        self._child = child(settings, {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)})
        self._grpc = f"127.0.0.1:{grpc}"
        self._log = folder / "triton.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.proxy = Proxy(("127.0.0.1", proxied), ("127.0.0.1", grpc))
        self.url = f"127.0.0.1:{proxied}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            environment = dict(self._child.environment)
            self._process = subprocess.Popen(self._child.command, env=environment, stdout=log, stderr=log)
        client, deadline = TritonClient([self._grpc]), time.monotonic() + 60
        while not client.ready():
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.1)
        client.close()

    def end(self, signal_number: int = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(signal_number)
        self._process.wait(30)
        asyncio.run(self._child.clean())


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    two = [Server(tmp_path_factory.mktemp(f"triton{number}")) for number in range(2)]
    for one in two:
        one.start()
    yield two
    for one in two:
        one.proxy.flow()
        one.end(signal.SIGTERM)
        one.proxy.stop()


@pytest.fixture(scope="module")
def hospital(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("several") / "state")
    stack.environment["DERMSERVE_TRITON_URL"] = ",".join(one.url for one in servers)
    stack.start()
    yield stack
    stack.stop()


@pytest.mark.slow
def test_one_of_two_is_killed_again_and_again(hospital: Stack, servers: list[Server], drills: list[Outcome]) -> None:
    turn = iter([0, 1, 0])

    def kill() -> None:
        one = servers[next(turn)]
        one.end()
        one.start()

    outcome = run(hospital, "one of two Tritons", kill, times=3)
    drills.append(outcome)
    outcome.check()
    assert outcome.refusals == {}, "the other one takes what was in flight; no sender notices"


@pytest.mark.slow
def test_one_of_two_is_told_to_end(hospital: Stack, servers: list[Server], drills: list[Outcome]) -> None:
    def drain() -> None:
        servers[0].end(signal.SIGTERM)
        servers[0].start()

    outcome = run(hospital, "one of two, by SIGTERM", drain, times=1)
    drills.append(outcome)
    outcome.check()
    assert outcome.refusals == {}


@pytest.mark.slow
def test_the_wire_to_one_of_two_is_held_up(hospital: Stack, servers: list[Server], drills: list[Outcome]) -> None:
    def stall() -> None:
        servers[1].proxy.stall()
        time.sleep(STALL_S)
        servers[1].proxy.flow()

    outcome = run(hospital, "the wire to one of two", stall, times=1)
    drills.append(outcome)
    outcome.check()
