"""What a client can do to the server before and beside any route: on real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from frontend import connections
from tests.frontend.conftest import Server, new_key

PATIENCE_S = 1.0
HEAD = b"GET /healthz HTTP/1.1\r\nHost: derm\r\n"


@pytest.fixture(scope="module")
def head(running: Server) -> str:
    """The beginning of a request with an image, made before a connection runs out of patience."""
    key = new_key(running.settings)
    return f"POST /v1/predictions HTTP/1.1\r\nHost: derm\r\nAuthorization: Bearer {key}\r\nContent-Type: image/jpeg\r\n"


@pytest.fixture
def connection(server: Server, head: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A connection to a server with little patience."""
    del head
    monkeypatch.setattr(connections, "PATIENCE_S", PATIENCE_S)
    with closing(socket.create_connection(("127.0.0.1", server.settings.port), timeout=20)) as connection:
        yield connection


def send(connection: socket.socket, parts: Iterable[bytes], every_s: float = 0.0) -> tuple[bytes, float]:
    """Send part by part until the server ends the connection; all that it said, and for how long it went on."""
    began, said = time.monotonic(), b""
    connection.settimeout(max(every_s, 0.001))
    try:
        for part in parts:
            connection.sendall(part)
            try:
                received = connection.recv(65_536)
            except TimeoutError:
                continue
            if not received:
                break
            said += received
    except (ConnectionError, BrokenPipeError):
        pass
    return said, time.monotonic() - began


def answers(connection: socket.socket, count: int) -> bytes:
    """What comes until so many answers have come."""
    said = b""
    while said.count(b'{"status":"alive"}') < count:
        received = connection.recv(65_536)
        assert received, said
        said += received
    return said


def until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("beginning", [b"", b"GE", HEAD])
def test_silent_client_is_hung_up_on(connection: socket.socket, beginning: bytes) -> None:
    connection.sendall(beginning)
    assert PATIENCE_S - 0.1 < until_closed(connection) < 10


def test_headers_that_come_byte_by_byte(connection: socket.socket) -> None:
    said, lasted = send(connection, (byte for byte in (HEAD, *[b"a"] * 400)), every_s=0.05)
    assert said == b""
    assert PATIENCE_S - 0.1 < lasted < 15


def test_second_request_of_a_connection_has_no_more_time_than_the_first(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    answers(connection, 1)
    said, lasted = send(connection, (byte for byte in (HEAD, *[b"a"] * 400)), every_s=0.05)
    assert (said, PATIENCE_S - 0.1 < lasted < 15) == (b"", True)


@pytest.mark.parametrize("beginning", [b"GET /", HEAD + b"X: ", HEAD], ids=["address", "value", "many"])
def test_headers_without_end(connection: socket.socket, beginning: bytes) -> None:
    more = (b"X-%d: %s\r\n" % (n, b"a" * 1000) if beginning is HEAD else b"a" * 1000 for n in range(20_000))
    said, _ = send(connection, (beginning, *more))
    assert said == b"" or b" 431 " in said.splitlines()[0]
    assert until_closed(connection) < PATIENCE_S


def test_framing_of_chunks_without_end(connection: socket.socket, head: str) -> None:
    beginning = f"{head}Transfer-Encoding: chunked\r\n\r\n1;x=".encode()
    send(connection, (beginning, *[b"a" * 10_000] * 2000))
    connection.settimeout(20)
    assert until_closed(connection) < PATIENCE_S


def test_body_may_take_longer(connection: socket.socket, head: str, jpegs: list[bytes]) -> None:
    data = jpegs[0]
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:100])
    time.sleep(2 * PATIENCE_S)
    connection.sendall(data[100:])
    assert connection.recv(65_536).startswith(b"HTTP/1.1 201 ")


def test_rest_of_a_body_that_was_refused(connection: socket.socket) -> None:
    head = HEAD.replace(b"GET /healthz", b"PATCH /v1/predictions/" + b"0" * 8 + b"-0000-0000-0000-" + b"0" * 12)
    body = b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    said, lasted = send(connection, (head + body, *[b"a"] * 400), every_s=0.05)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert lasted < 15


def test_next_request_waits_for_the_answer_before(
    connection: socket.socket, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = server.stand_in.ready

    async def slowly() -> bool:
        await asyncio.sleep(1.5 * PATIENCE_S)
        return await ready()

    monkeypatch.setattr(server.stand_in, "ready", slowly)
    connection.sendall(HEAD.replace(b"healthz", b"readyz") + b"\r\n" + HEAD)
    first = connection.recv(65_536)
    assert first.startswith(b"HTTP/1.1 200 ")
    connection.sendall(b"\r\n")
    answers(connection, 1)


def test_many_requests_on_one_connection(connection: socket.socket) -> None:
    connection.sendall((HEAD + b"\r\n") * 3)
    answers(connection, 3)
    for _ in range(3):
        connection.sendall(HEAD)
        time.sleep(0.1)
        connection.sendall(b"\r\n")
        answers(connection, 1)
