"""No image rests anywhere: images with a marker in their bytes are sent, and every file is searched for it afterwards."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from dermserve import sample
from tests.system.stack import Stack

UPLOADS = 500
SENDERS = 16


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose temporary folder is searched, too."""
    folder = tmp_path_factory.mktemp("private")
    stack = Stack(folder / "state")
    stack.environment["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir()
    stack.start()
    yield stack
    stack.stop()


def marked(marker: bytes, number: int) -> bytes:
    """A JPEG that carries the marker a hundred times: in comments, as EXIF would be, and behind its end."""
    jpeg = sample.jpeg(number % 8)
    text = marker + number.to_bytes(4, "big")
    comment = b"\xff\xfe" + (len(text) * 50 + 2).to_bytes(2, "big") + text * 50
    return jpeg[:2] + comment + jpeg[2:] + text * 50


def places(stack: Stack) -> list[Path]:
    return [stack.state_dir, Path(stack.environment["TMPDIR"]), Path(tempfile.gettempdir())]


def holding(stack: Stack, marker: bytes, *more: Path) -> list[Path]:
    """Every file with the marker in it below the folders on the disk that the stack can write to, and `more`."""
    found = []
    for path in (path for place in (*places(stack), *more) for path in _files(place)):
        with suppress(OSError):  # gone by now, or a socket
            if marker in path.read_bytes():
                found.append(path)
    return found


def _files(place: Path) -> Iterator[Path]:
    """Every file below; of the machine's own temporary folder only what dermserve could have left there."""
    for folder, folders, names in os.walk(place):  # unlike a glob it minds no folder that goes away meanwhile
        if Path(folder) == Path(tempfile.gettempdir()):
            folders[:] = [name for name in folders if name.startswith("derm")]
            names[:] = [name for name in names if name.startswith("derm")]
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def send_all(stack: Stack, marker: bytes, during: Callable[[int], None] = lambda _: None) -> list[int]:
    """Statuses of `UPLOADS` uploads, half of them as a form; 0 where no answer came."""
    headers = {"Authorization": f"Bearer {stack.create_api_key()}"}
    done, lock = [0], threading.Lock()

    def send(number: int) -> int:
        data = marked(marker, number)
        body = {"files": {"file": ("a.jpg", data)}} if number % 2 else {"content": data}
        try:
            status = httpx.post(f"{stack.url}/v1/predictions", headers=headers, timeout=60, **body).status_code
        except httpx.HTTPError:
            status = 0
        with lock:
            done[0] += 1
            count = done[0]
        during(count)
        return status

    with ThreadPoolExecutor(SENDERS) as pool:
        return list(pool.map(send, range(UPLOADS)))


def test_search_finds_what_is_there(private: Stack) -> None:
    marker = secrets.token_bytes(16)
    for place in places(private)[:2]:
        (place / "left-behind").write_bytes(b"x" * 10_000 + marker)
    assert len(holding(private, marker)) == 2


def test_no_file_holds_an_image_afterwards(private: Stack) -> None:
    marker = secrets.token_bytes(16)
    assert set(send_all(private, marker)) == {201}
    assert holding(private, marker) == []


def test_nor_where_everything_is_killed_in_the_middle(private: Stack) -> None:
    marker = secrets.token_bytes(16)

    def kill(count: int) -> None:
        if count == UPLOADS // 4:
            private.triton().send_signal(signal.SIGKILL)
        if count == UPLOADS // 2:
            for process in reversed(private.processes()):
                with suppress(Exception):
                    process.kill()

    statuses = send_all(private, marker, kill)
    assert 201 in statuses
    assert 0 in statuses
    assert private.process is not None
    private.process.wait(10)
    assert holding(private, marker) == []
    private.start()
    private.wait_for(200, 60)
    memory = Path("/dev/shm")
    assert holding(private, marker, memory) == [], "shared memory of the killed processes is cleaned at the next start"
