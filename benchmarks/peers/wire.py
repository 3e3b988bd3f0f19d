"""One sender to any of the servers: its own connection, its image, and an answer that is checked to be the right one."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.images import stamped
from benchmarks.peers.catalogue import Encoding

Columns = Sequence[float]
_TIMEOUT_S = 60.0
_BOUNDARY = "dermserve-benchmark"
_FORM = "form:"


class Wrong(Exception):
    """An answer that is not the right one; the text says in what."""


class Numbered:
    """Endless (number of the picture, file): the same pictures in turn, no two files alike, for several threads."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files
        self._run = secrets.token_hex(8)
        self._turns = itertools.count()

    def __iter__(self) -> Numbered:
        return self

    def __next__(self) -> tuple[int, bytes]:
        turn = next(self._turns)
        number = turn % len(self._files)
        return number, stamped(self._files[number], f"{self._run} {turn}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Numbered, (self._files,)


@dataclass(frozen=True)
class Expected:
    """The right answers: for each picture Benign, Suspicious, Malignant, of which Melanoma; and how near is near."""

    answers: Sequence[Columns]
    tolerance: float

    def check(self, number: int, columns: Any) -> None:
        """Accept the right answer to picture `number`.

        Raises:
            Wrong: not four finite numbers, no probabilities, or not those of this picture.
        """
        try:
            found = [float(value) for value in columns]
        except (TypeError, ValueError) as error:
            raise Wrong(f"no list of numbers: {str(columns)[:80]}") from error
        if len(found) != 4 or not all(map(math.isfinite, found)):
            raise Wrong("not four finite numbers")
        benign, suspicious, malignant, melanoma = found
        if min(found) < 0 or not math.isclose(benign + suspicious + malignant, 1, abs_tol=1e-3):
            raise Wrong("no probabilities that sum to 1")
        if melanoma > malignant + 1e-6:
            raise Wrong("melanoma is not a part of malignant")
        off = max(abs(one - right) for one, right in zip(found, self.answers[number], strict=True))
        if off > self.tolerance:
            raise Wrong("another answer than this picture's")


@dataclass(frozen=True)
class Http:
    """Calls an HTTP server and returns what checks one image; a connection that is kept alive for each call of it."""

    port: int
    path: str
    encoding: Encoding
    expected: Expected
    headers: tuple[tuple[str, str], ...] = ()
    right_status: int = 200

    def __call__(self) -> Callable[[tuple[int, bytes]], None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)

        def send(picture: tuple[int, bytes]) -> None:
            number, image = picture
            kind, body = encode(self.encoding, image)
            try:
                connection.request("POST", self.path, body, {"Content-Type": kind, **dict(self.headers)})
                response = connection.getresponse()
                answer = response.read()
            except Exception:
                connection.close()  # the next image begins anew
                raise
            if response.status != self.right_status:
                raise Wrong(f"status {response.status}: {answer[:80]!r}")
            self.expected.check(number, columns(json.loads(answer)))

        return send


@dataclass(frozen=True)
class TritonGrpc:
    """Calls Triton with its own client, on a channel of its own for each call of it."""

    address: str
    expected: Expected

    def __call__(self) -> Callable[[tuple[int, bytes]], None]:
        import numpy as np
        import tritonclient.grpc as triton

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        server = triton.InferenceServerClient(self.address, channel_args=options)
        outputs = [triton.InferRequestedOutput("probabilities")]

        def send(picture: tuple[int, bytes]) -> None:
            number, image = picture
            tensor = triton.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], dtype=object))
            answer = server.infer("melanoma", [tensor], outputs=outputs, client_timeout=_TIMEOUT_S)
            self.expected.check(number, answer.as_numpy("probabilities")[0])

        return send


def encode(encoding: Encoding, image: bytes) -> tuple[str, bytes]:
    """Content type and body of a request; `form:NAME` is a form with the image as the file NAME."""
    match encoding:
        case "raw":
            return "image/jpeg", image
        case "base64":
            return "application/json", json.dumps({"image": base64.b64encode(image).decode()}).encode()
        case _:
            field = f'name="{encoding.removeprefix(_FORM)}"; filename="lesion.jpg"'
            head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {field}\r\n"
            end = f"\r\n--{_BOUNDARY}--\r\n"
            body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + end.encode()
            return f"multipart/form-data; boundary={_BOUNDARY}", body


def columns(answer: Any) -> Any:
    """The four columns in any of the servers' answers: a list, a list in a list, or by name."""
    if isinstance(answer, dict):
        answer = answer.get("probabilities")
    if isinstance(answer, dict):
        return [answer.get(name) for name in ("benign", "suspicious", "malignant", "melanoma")]
    if isinstance(answer, list) and len(answer) == 1:
        return answer[0]
    return answer
