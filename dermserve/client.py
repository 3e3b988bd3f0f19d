"""Client of the model `melanoma` on one or several Triton servers, for threads and for asyncio.

One channel a server, a deadline for every call, and retries only where they are safe and useful: inference has no side
effect, so a call that met a dead or restarting server is sent again, to the next one in turn, after a jittered pause.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from dermserve.errors import DermserveError, InferenceUnavailable, Overloaded, from_wire

MODEL: Final = "melanoma"
OUTPUT_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "probabilities": (4,),
    "diagnoses": (9,),
    "cam": (10, 10),
    "embedding": (1536,),
    "quality": (4,),
    "ood": (1,),
    "region": (4,),
}

_RETRY_FOR_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.05
_INTERACTIVE, _BULK = 1, 2  # priority levels of the repository's queues
# gRPC would let the pause between connection attempts grow to two minutes; a restarted server must be found at once.
_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
]

Outputs = dict[str, NDArray[np.float32]]


class Runtime(NamedTuple):
    """What computes the answers, as the served classifier's configuration says."""

    runtime: str
    precision: str


class TritonClient:
    """For threads; see `AsyncTritonClient` for the meaning of every argument."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 30.0) -> None:
        self._servers = [triton.InferenceServerClient(url, channel_args=_CHANNEL) for url in urls]
        self._timeout_s = timeout_s
        self._turn = 0

    def infer(self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False) -> Outputs:
        """See `AsyncTritonClient.infer`."""
        request = _request(images, outputs, bulk)
        self._turn += 1
        attempt = _Attempts(len(self._servers), self._turn, self._timeout_s)
        for server in attempt:
            try:
                answer = self._servers[server].infer(client_timeout=attempt.remaining_s, **request)
            except InferenceServerException as error:
                time.sleep(attempt.pause_after(error))
            else:
                return _read(answer, len(images), outputs)
        raise attempt.failure

    def ready(self) -> bool:
        """Whether at least one server answers and has the model loaded."""
        return any(self._is_ready(server) for server in self._servers)

    @staticmethod
    def _is_ready(server: triton.InferenceServerClient) -> bool:
        try:
            return bool(server.is_model_ready(MODEL, client_timeout=_PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False

    def close(self) -> None:
        """Close every channel."""
        for server in self._servers:
            server.close()


class AsyncTritonClient:
    """For asyncio; create it inside a running event loop, one for the process's life.

    Args:
        urls: gRPC addresses, host:port; calls go to them in turn.
        timeout_s: deadline of one `infer`, retries included, in seconds.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 30.0) -> None:
        self._servers = [triton_aio.InferenceServerClient(url, channel_args=_CHANNEL) for url in urls]
        self._timeout_s = timeout_s
        self._turn = 0

    async def infer(self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False) -> Outputs:
        """Score encoded images (JPEG, PNG or DICOM), in order.

        Args:
            images: N ≥ 1 encoded images, one request.
            outputs: names out of `OUTPUT_SHAPES`; only these travel.
            bulk: wait behind interactive requests in the server's queues.

        Returns:
            For each name a float32 array of shape [N, *OUTPUT_SHAPES[name]].

        Raises:
            ImageError: an image is refused; the detail names its index when N > 1.
            Overloaded: the server's queue is full, or the request waited too long in it.
            InferenceUnavailable: no server answered in time.
        """
        request = _request(images, outputs, bulk)
        self._turn += 1
        attempt = _Attempts(len(self._servers), self._turn, self._timeout_s)
        for server in attempt:
            try:
                answer = await self._servers[server].infer(client_timeout=attempt.remaining_s, **request)
            except InferenceServerException as error:
                await asyncio.sleep(attempt.pause_after(error))
            else:
                return _read(answer, len(images), outputs)
        raise attempt.failure

    async def ready(self) -> bool:
        """Whether at least one server answers and has the model loaded."""
        return any(await asyncio.gather(*(self._is_ready(server) for server in self._servers)))

    @staticmethod
    async def _is_ready(server: triton_aio.InferenceServerClient) -> bool:
        try:
            return bool(await server.is_model_ready(MODEL, client_timeout=_PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False

    async def runtime(self) -> Runtime:
        """Runtime and precision of the first server that answers.

        Raises:
            InferenceUnavailable: none answers.
        """
        for server in self._servers:
            try:
                answer = await server.get_model_config("classifier", client_timeout=_PROBE_TIMEOUT_S)
            except InferenceServerException:
                continue
            parameters = answer.config.parameters
            return Runtime(parameters["runtime"].string_value, parameters["precision"].string_value)
        raise InferenceUnavailable

    async def close(self) -> None:
        """Close every channel."""
        for server in self._servers:
            await server.close()


class _Attempts:
    """Which server to try next, and when to give up: the part of the retry loop that both clients share."""

    def __init__(self, servers: int, turn: int, timeout_s: float) -> None:
        self._servers = servers
        self._turn = turn
        self._start = time.monotonic()
        self._timeout_s = timeout_s
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0
        self.failure: DermserveError = InferenceUnavailable()

    def __iter__(self) -> Iterator[int]:
        while self._tried == 0 or self._elapsed_s < min(_RETRY_FOR_S, self._timeout_s):
            yield (self._turn + self._tried) % self._servers
            self._tried += 1

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, for this attempt."""
        return max(0.001, self._timeout_s - self._elapsed_s)

    def pause_after(self, error: InferenceServerException) -> float:
        """Note the failure; returns the seconds to wait before the next attempt, or raises when none would help."""
        self.failure = _translate(error)
        if not isinstance(self.failure, InferenceUnavailable) or self.remaining_s <= 0.001:
            raise self.failure from error
        if self._tried + 1 < self._servers:
            return 0.0  # the next server may well be alive
        pause = random.uniform(0.5, 1.0) * self._pause_s  # noqa: S311  jitter, not a secret
        self._pause_s = min(2 * self._pause_s, 1.0)
        return pause


def _request(images: Sequence[bytes], outputs: Sequence[str], bulk: bool) -> dict[str, Any]:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    encoded = np.empty((len(images), 1), object)
    encoded[:, 0] = images
    tensor.set_data_from_numpy(encoded)
    return {
        "model_name": MODEL,
        "inputs": [tensor],
        "outputs": [triton.InferRequestedOutput(name) for name in outputs],
        "priority": _BULK if bulk else _INTERACTIVE,
    }


def _read(answer: triton.InferResult, count: int, outputs: Sequence[str]) -> Outputs:
    read: Outputs = {}
    for name in outputs:
        values = answer.as_numpy(name)
        # A stub with the wrong NumPy answers "OK" with nothing inside; that must never pass for a result.
        if values is None or values.shape != (count, *OUTPUT_SHAPES[name]) or not np.isfinite(values).all():
            raise InferenceUnavailable(f"The model server's output {name!r} is malformed.")
        read[name] = values
    return read


def _translate(error: InferenceServerException) -> DermserveError:
    message = error.message() or ""
    known = from_wire(message)
    if known is not None:
        return known[0]
    if "maximum queue size" in message or "timeout expired" in message:
        return Overloaded()
    if "DEADLINE_EXCEEDED" in str(error.status()):
        return Overloaded("The model server did not answer in time; please try again shortly.")
    return InferenceUnavailable()
