"""Small real servers and senders for tests of load generators; in a module, because a spawned process imports them."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Sleeper:
    """Answers after `seconds`; every `stall_every`th call of a sender takes `stall_s`."""

    seconds: float
    stall_every: int = 0
    stall_s: float = 0.0

    def __call__(self) -> Callable[[bytes], None]:
        calls = 0

        def send(_picture: bytes) -> None:
            nonlocal calls
            calls += 1
            time.sleep(self.stall_s if self.stall_every and calls % self.stall_every == 0 else self.seconds)

        return send


def refusing_every_second() -> Callable[[bytes], None]:
    calls = 0

    def send(_picture: bytes) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)
        if calls % 2 == 0:
            raise RuntimeError("503 overloaded")

    return send


def unreachable() -> Callable[[bytes], None]:
    raise ConnectionError("nobody listens")


def busy() -> Callable[[bytes], None]:
    def send(_picture: bytes) -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    return send


def only_distinct() -> Callable[[bytes], None]:
    def send(picture: bytes) -> None:
        with _lock:
            if picture in _seen:
                raise RuntimeError("seen before")
            _seen.add(picture)

    return send


_lock = threading.Lock()
_seen: set[bytes] = set()


def answer(image: bytes) -> bytes:
    """What the API answers about `image`, as far as a load generator looks."""
    probabilities = {"benign": 0.7, "suspicious": 0.1, "malignant": 0.2, "melanoma": 0.15}
    return json.dumps({"image": {"sha256": hashlib.sha256(image).hexdigest()}, "probabilities": probabilities}).encode()


class Api:
    """A server of `POST /v1/predictions` on loopback. It answers one image at a time, as `respond(number, image)` says.

    `respond` returns status, further headers and body; it may sleep. With `hang_up`, connections end after each answer.
    """

    def __init__(
        self, respond: Callable[[int, bytes], tuple[int, dict[str, str], bytes]] | None = None, *, hang_up: bool = False
    ) -> None:
        one_at_a_time = threading.Lock()
        numbers = iter(range(10**9))
        self.connections = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                api.connections += 1

            def do_POST(self) -> None:
                image = self.rfile.read(int(self.headers["Content-Length"]))
                with one_at_a_time:
                    status, headers, body = respond(next(numbers), image) if respond else (201, {}, answer(image))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = hang_up

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Api:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class HoldsUp:
    """Pictures of which the tenth keeps the generator itself busy for `seconds`."""

    def __init__(self, picture: bytes, seconds: float) -> None:
        self._picture = picture
        self._seconds = seconds
        self._given = 0

    def __iter__(self) -> HoldsUp:
        return self

    def __next__(self) -> bytes:
        self._given += 1
        if self._given == 10:
            time.sleep(self._seconds)
        return self._picture
