"""Kill parts of the stack, and the whole, and see what a user would see."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from dermserve import sample
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from tests.system.stack import DERMSERVE, Stack

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path / "state")
    stack.start()
    yield stack
    if stack.process is not None and stack.process.poll() is None:
        stack.stop()


def regions(processes: Iterable[psutil.Process]) -> set[Path]:
    """The shared memory that these processes have mapped; other stacks have theirs beside it."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {Path(one.path) for one in process.memory_maps()}
    return {path for path in found if SHARED_MEMORY in path.parents and path.exists()}


def test_killed_triton_comes_back_by_itself_and_nothing_is_lost(stack: Stack, api_key: str) -> None:
    killed = stack.triton().pid
    before = stack.predict(sample.jpeg(700), api_key)
    stack.triton().send_signal(signal.SIGKILL)
    stack.wait_for(503, 5)
    page = stack.request("GET", "/")
    assert page.status == 200
    assert stack.wait_for(200, 30) < 30
    assert stack.triton().pid != killed
    assert stack.predict(sample.jpeg(701), api_key).status == 201
    assert stack.predict(sample.jpeg(700), api_key).body["id"] == before.body["id"]


def test_a_killed_stub_is_noticed_and_replaced(stack: Stack, api_key: str) -> None:
    """Triton itself never replaces one, and goes on calling its model ready."""
    stubs = [child for child in stack.triton().children() if any("/melanoma/" in word for word in child.cmdline())]
    assert len(stubs) == 2
    server = stack.triton().pid
    stubs[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not _other_triton(stack, server):
        time.sleep(0.1)
    assert _other_triton(stack, server)
    stack.wait_for(200, 30)
    assert [stack.predict(sample.jpeg(seed), api_key).status // 100 for seed in range(720, 724)] == [2] * 4


def _other_triton(stack: Stack, pid: int) -> bool:
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):  # what is ending cannot be asked its name
            if process.name() == "tritonserver" and process.pid != pid:
                return True
    return False


def test_an_export_while_serving_changes_nothing_until_the_next_start(own_stack: Stack) -> None:
    own_stack.stop()
    repository = own_stack.state_dir.parent / "models"
    shutil.copytree(Settings().model_repository, repository)
    own_stack.environment["DERMSERVE_MODEL_REPOSITORY"] = str(repository)
    own_stack.start()
    key = own_stack.create_api_key()
    before = own_stack.predict(sample.jpeg(1), key).body["model"]["version"]
    card = ModelCard.read(repository)
    card.model_copy(update={"version": "9.9.9"}).write(repository)
    own_stack.triton().send_signal(signal.SIGKILL)
    own_stack.wait_for(503, 5)
    own_stack.wait_for(200, 30)
    assert own_stack.predict(sample.jpeg(2), key).body["model"]["version"] == before
    own_stack.stop()
    own_stack.start()
    assert own_stack.predict(sample.jpeg(3), key).body["model"]["version"] == "9.9.9"


def test_a_request_sent_while_triton_is_down_is_answered_or_refused_with_a_hint(stack: Stack, api_key: str) -> None:
    stack.triton().send_signal(signal.SIGKILL)
    answer = stack.predict(sample.jpeg(710), api_key)
    if answer.status != 201:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
    stack.wait_for(200, 30)
    assert stack.predict(sample.jpeg(710), api_key).status in (200, 201)


def test_killed_database_comes_back_with_what_was_acknowledged(own_stack: Stack) -> None:
    key = own_stack.create_api_key()
    ids = [own_stack.predict(sample.jpeg(seed), key).body["id"] for seed in range(5)]
    postgres = next(p for p in own_stack.processes() if p.name() == "postgres" and "-D" in p.cmdline())
    postgres.send_signal(signal.SIGKILL)
    own_stack.wait_for(503, 5)
    own_stack.wait_for(200, 30)
    listed = own_stack.request("GET", "/v1/predictions?limit=50", Authorization=f"Bearer {key}").body["items"]
    assert [item["id"] for item in listed] == ids[::-1]


def test_sigterm_leaves_no_process_and_no_shared_memory(own_stack: Stack) -> None:
    started = own_stack.processes()
    assert len(started) > 6
    mapped = regions(started)
    assert mapped
    assert own_stack.stop() == 0
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    assert [path for path in mapped if path.exists()] == []
    assert not (own_stack.state_dir / "database.url").exists()


def test_a_killed_supervisor_takes_its_children_along_and_the_next_start_is_clean(own_stack: Stack) -> None:
    key = own_stack.create_api_key()
    first = own_stack.predict(sample.jpeg(1), key).body["id"]
    started = own_stack.processes()
    started[0].send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == [], "children end when the supervisor is gone"
    own_stack.start()
    assert own_stack.predict(sample.jpeg(1), key).body["id"] == first


def test_a_start_cut_off_by_sigkill_leaves_no_stub_once_it_is_started_again(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "state")
    cut_off = subprocess.Popen([DERMSERVE, "serve"], env=stack.environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not stubs_of(stack) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # into their imports: there Triton, which is told to end, leaves them behind
    cut_off.kill()
    cut_off.wait()
    stack.start()
    try:
        ours = {process.pid for process in stack.processes()}
        assert {process.pid for process in stubs_of(stack)} <= ours
    finally:
        stack.stop()
    assert stubs_of(stack) == []


def stubs_of(stack: Stack) -> list[psutil.Process]:
    """The python stubs that work in this stack's state folder, whoever their parent is."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        first = (process.info["cmdline"] or [""])[0]
        if first.startswith(str(stack.state_dir)) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_shared_memory_is_for_no_other_account_to_read(stack: Stack, api_key: str) -> None:
    """It holds the last images until others overwrite them."""
    assert stack.predict(sample.jpeg(730), api_key).status == 201
    names = {word for process in stubs_of(stack) for word in process.cmdline() if word.startswith("dermserve_")}
    regions_of_ours = [SHARED_MEMORY / name for name in names if (SHARED_MEMORY / name).exists()]
    assert len(regions_of_ours) == 4
    assert all(region.stat().st_mode & 0o077 == 0 for region in regions_of_ours)


def test_a_second_stack_on_the_same_state_is_refused_in_one_line(stack: Stack) -> None:
    second = stack.run("serve")
    assert second.returncode == 1
    assert second.stderr.strip().splitlines()[-1].startswith("dermserve: Another dermserve runs on")


@pytest.mark.parametrize("name", ["PORT", "TRITON_GRPC_PORT"])
def test_a_port_in_use_is_named_at_once(tmp_path: Path, name: str) -> None:
    stack = Stack(tmp_path / "state")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.ports[name]))
        taken.listen()
        start = time.monotonic()
        done = subprocess.run(
            [DERMSERVE, "serve"], env=stack.environment, capture_output=True, text=True, check=False, timeout=30
        )
    assert done.returncode == 1
    assert f"Port {stack.ports[name]} on 127.0.0.1 is in use: set DERMSERVE_{name} to another." in done.stderr
    assert time.monotonic() - start < 10
    assert "Traceback" not in done.stderr
