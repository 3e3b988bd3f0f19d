"""What a load generator sends with: Triton's gRPC or HTTP, the HTTP API with a key or with a page's session.

Each is a small value that travels to the generator's process; called there, it connects and returns a function that
sends one image (or one batch), checks the answer and raises on any fault. They are written for little work per image,
because client and server share the cores of the machine that is measured: requests are prebuilt, and the protocols'
own libraries do nothing but carry bytes.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urlsplit

import numpy as np

from benchmarks import target
from benchmarks.forms import password_form, token
from dermserve.errors import StartupError

_TIMEOUT_S = 60.0
_LARGEST_HEAD = 65_536


class WrongAnswer(Exception):
    """The server answered, and not as it should have; says how."""


@dataclass(frozen=True)
class Grpc:
    """Triton's model `melanoma` at `address` (host:port); only `probabilities` are asked for.

    The senders of a process share a connection, as the senders behind one tritonclient do.

    The function takes one encoded image (bytes) or a tuple of them, which then is one request.
    """

    address: str
    bulk: bool = True
    timeout_s: float = _TIMEOUT_S

    def __call__(self) -> Callable[[bytes | Sequence[bytes]], None]:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        channel = grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)])
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        request = service_pb2.ModelInferRequest(model_name="melanoma")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        request.outputs.add(name="probabilities")
        request.parameters["priority"].uint64_param = 2 if self.bulk else 1
        request.raw_input_contents.append(b"")

        def send(images: bytes | Sequence[bytes]) -> None:
            batch = (images,) if isinstance(images, bytes) else images
            tensor.shape[0] = len(batch)
            request.raw_input_contents[0] = b"".join(
                part for image in batch for part in (struct.pack("<I", len(image)), image)
            )
            try:
                answer = infer(request, timeout=self.timeout_s)
            except grpc.RpcError as error:
                raise WrongAnswer(f"{error.code().name}: {error.details()}") from error
            _check_probabilities(answer.raw_output_contents, len(batch))

        return send


def _check_probabilities(outputs: Sequence[bytes], count: int) -> None:
    if len(outputs) != 1 or len(outputs[0]) != 16 * count:
        raise WrongAnswer("the output has another size")
    found = np.frombuffer(outputs[0], np.float32).reshape(count, 4)
    if not (np.abs(found[:, :3].sum(axis=1) - 1.0) < 1e-4).all():
        raise WrongAnswer("the probabilities do not sum to 1")
    if not ((found[:, 3] >= 0) & (found[:, 3] <= found[:, 2] + 1e-6)).all():
        raise WrongAnswer("melanoma is not a part of malignant")


@dataclass(frozen=True)
class TritonHttp:
    """The same by Triton's HTTP with binary tensors, one image a request, at `address` (host:port).

    Sending costs a third of what gRPC's library takes in Python, so more of a small machine is left to the server.
    """

    address: str
    timeout_s: float = _TIMEOUT_S

    def __call__(self) -> Callable[[bytes], None]:
        host, _, port = self.address.partition(":")
        connection = _Connection((host, int(port)), self.timeout_s)

        def send(image: bytes) -> None:
            asked = _TRITON_JSON % (len(image) + 4)
            size = len(asked) + 4 + len(image)
            start = _TRITON_HEAD % (self.address.encode(), len(asked), size)
            status, headers, body = connection.call(b"".join((start, asked, struct.pack("<I", len(image)), image)))
            if status != 200:
                connection.close()
                raise WrongAnswer(f"{status} {body[:120]!r}")
            _check_probabilities([body[int(headers.get("inference-header-content-length", "0")) :]], 1)

        return send


_TRITON_HEAD = (
    b"POST /v2/models/melanoma/infer HTTP/1.1\r\nHost: %s\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)
_TRITON_JSON = (
    b'{"parameters":{"priority":2},"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES",'
    b'"parameters":{"binary_data_size":%d}}],"outputs":[{"name":"probabilities","parameters":{"binary_data":true}}]}'
)


@dataclass(frozen=True)
class Http:
    """`POST /v1/predictions` at `url` with an API key: what a hospital's gateway does, one kept connection a sender."""

    url: str
    api_key: str
    timeout_s: float = _TIMEOUT_S

    def __call__(self) -> Callable[[bytes], None]:
        return _Poster(self.url, with_key(self.api_key), self.timeout_s).send


@dataclass(frozen=True)
class Session:
    """The same with a page's session, as the upload page sends. `cookie` and `csrf`: what `logged_in` returned."""

    url: str
    cookie: str
    csrf: str
    timeout_s: float = _TIMEOUT_S

    def __call__(self) -> Callable[[bytes], None]:
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Filename": "lesion.jpg",
            "X-CSRF-Token": self.csrf,
            "Cookie": self.cookie,
        }
        return _Poster(self.url, headers, self.timeout_s).send


class _Connection:
    """One HTTP/1.1 connection, opened when it is needed and anew after a fault."""

    def __init__(self, address: tuple[str, int], timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def call(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, self._timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            return _read_answer(self._socket)
        except OSError as error:
            self.close()
            raise WrongAnswer(f"no answer: {error}") from error

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Poster:
    """Sends predictions to the HTTP API and checks them."""

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        self._connection = _Connection(address(url), timeout_s)
        self._head = head(url, headers)

    def send(self, image: bytes) -> None:
        status, _, body = self._connection.call(self._head % len(image) + image)
        fault = target.fault(status, body, image)
        if fault is not None:
            self._connection.close()
            raise WrongAnswer(fault)


def address(url: str) -> tuple[str, int]:
    """Host and port of an http address.

    Raises:
        StartupError: it asks for TLS, which these senders do not speak.
    """
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise StartupError("The load generator speaks plain http: give the server's own address behind its proxy.")
    return parts.hostname or "", parts.port or 80


def with_key(api_key: str) -> dict[str, str]:
    """The headers of a gateway that sends JPEG files with an API key."""
    return {"Content-Type": "image/jpeg", "Authorization": f"Bearer {api_key}"}


def head(url: str, headers: dict[str, str]) -> bytes:
    """The head of a request for a prediction, with `%d` where the body's length belongs."""
    host, port = address(url)
    lines = [
        "POST /v1/predictions HTTP/1.1", f"Host: {host}:{port}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]  # fmt: skip
    return "\r\n".join(lines).replace("%", "%%").encode() + b"\r\nContent-Length: %d\r\n\r\n"


def parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, names in small letters, of an answer's head.

    Raises:
        ConnectionError: it is none.
    """
    first, *lines = raw.decode("latin-1").split("\r\n")
    fields = first.split(" ", 2)
    if len(fields) < 2 or not fields[1].isdigit():
        raise ConnectionError("not an HTTP answer")
    pairs = (line.partition(":") for line in lines if line)
    return int(fields[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        chunk = connection.recv(65_536)
        if not chunk or len(received) > _LARGEST_HEAD:
            raise ConnectionError("the connection ended before an answer")
        received += chunk
    status, headers = parse_head(bytes(received[:end]))
    length = int(headers.get("content-length", "0"))
    body = received[end + 4 :]
    while len(body) < length:
        chunk = connection.recv(65_536)
        if not chunk:
            raise ConnectionError("the connection ended in the middle of an answer")
        body += chunk
    return status, headers, bytes(body)


def logged_in(url: str) -> tuple[str, str]:
    """Register an account and log in; returns the session's cookie and CSRF token.

    Raises:
        StartupError: the pages would not have it.
    """
    account = {"email": f"bench-{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe(18)}
    cookies: dict[str, str] = {}

    def call(method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        connection = HTTPConnection(*address(url), timeout=_TIMEOUT_S)
        headers = {"Cookie": _cookie(cookies), "Origin": url, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request(method, path, urlencode(form or {}) if method == "POST" else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        for value in answer.headers.get_all("Set-Cookie") or ():
            cookies.update({name: morsel.value for name, morsel in SimpleCookie(value).items()})
        connection.close()
        return answer.status, text

    for path in ("/register", "/login"):
        if path == "/login":
            cookies.clear()
        form = password_form(call("GET", path)[1])
        if form is None or call("POST", form.action or path, form.filled(account))[0] not in (302, 303):
            raise StartupError(f"The page {path} did not take an account for the benchmark.")
    csrf = token(call("GET", "/upload")[1])
    if csrf is None:
        raise StartupError("The upload page carries no CSRF token.")
    return _cookie(cookies), csrf


def _cookie(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())
