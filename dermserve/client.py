"""Client of the model `melanoma` on one or several Triton servers, for threads and for asyncio.

One channel a server, a deadline for every call, and retries only where they are safe and useful: inference has no side
effect, so a call that met a dead, hung or restarting server is sent again, to another one, where all have been tried after a
jittered pause (`retries.py`); a server that failed is left alone for a while (`balancing.py`). What every server would refuse
alike is sent once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from dermserve.backlog import Backlog
from dermserve.balancing import Balance
from dermserve.errors import InferenceUnavailable
from dermserve.retries import Attempts

MODEL: Final = "melanoma"
INTERACTIVE: Final = "interactive"
"""The same model with processes of its own, for people's images; a server with a GPU has none and needs none."""
OUTPUT_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "probabilities": (4,),
    "diagnoses": (9,),
    "cam": (10, 10),
    "embedding": (1536,),
    "quality": (4,),
    "ood": (1,),
    "region": (4,),
}

_PROBE_TIMEOUT_S: Final = 2.0
_LANE_CLOSED_S: Final = 10.0
_INTERACTIVE, _BULK = 1, 2  # priority levels of the repository's queues
# gRPC would let the pause between connection attempts grow to two minutes; a restarted server must be found at once.
_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    # With http_proxy in the environment, gRPC would send patients' images, unencrypted, to that proxy.
    ("grpc.enable_http_proxy", 0),
]

Outputs = dict[str, NDArray[np.float32]]


class Runtime(NamedTuple):
    """What computes the answers, as the served model's configuration says."""

    runtime: str
    precision: str


class TritonClient:
    """For threads; see `AsyncTritonClient` for the meaning of every argument."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 30.0) -> None:
        self._servers = [triton.InferenceServerClient(url, channel_args=_CHANNEL) for url in urls]
        self._timeout_s = timeout_s
        self._balance = Balance(len(urls))
        self._backlog = Backlog()
        self._lanes = _Lanes()

    def infer(self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False) -> Outputs:
        """See `AsyncTritonClient.infer`."""
        request = _request(images, outputs, bulk)
        hint = partial(self._backlog.retry_after_s, bulk=bulk)
        attempt = Attempts(self._balance, self._timeout_s, len(images), hint)
        with self._backlog.of(len(images), bulk=bulk):
            for server in attempt:
                try:
                    with attempt.calling() as deadline_s:
                        answer = self._call(server, request, deadline_s)
                except InferenceServerException as error:
                    time.sleep(attempt.pause_after(error))
                else:
                    return _read(answer, len(images), outputs)
            raise attempt.failure

    def _call(self, server: int, request: dict[str, Any], deadline_s: float) -> triton.InferResult:
        model = self._lanes.model(server, request)
        try:
            return self._servers[server].infer(model, client_timeout=deadline_s, **request)
        except InferenceServerException as error:
            if not self._lanes.closed(server, model, error):
                raise
        return self._servers[server].infer(MODEL, client_timeout=deadline_s, **request)

    def ready(self) -> bool:
        """Whether at least one server answers and has the model loaded."""
        return any(self._is_ready(server) for server in self._servers)

    @staticmethod
    def _is_ready(server: triton.InferenceServerClient) -> bool:
        try:
            return bool(server.is_model_ready(MODEL, client_timeout=_PROBE_TIMEOUT_S))
        except InferenceServerException:
            return False

    def runtime(self) -> Runtime:
        """See `AsyncTritonClient.runtime`."""
        for server in self._servers:
            try:
                return _runtime(server.get_model_config(MODEL, client_timeout=_PROBE_TIMEOUT_S))
            except InferenceServerException:
                continue
        raise InferenceUnavailable

    def close(self) -> None:
        """Close every channel."""
        for server in self._servers:
            server.close()


class AsyncTritonClient:
    """For asyncio; create it inside a running event loop, one for the process's life.

    Args:
        urls: gRPC addresses, host:port; each call goes to the least busy one that answers.
        timeout_s: deadline of one `infer`, retries included, in seconds.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 30.0) -> None:
        self._servers = [triton_aio.InferenceServerClient(url, channel_args=_CHANNEL) for url in urls]
        self._timeout_s = timeout_s
        self._balance = Balance(len(urls))
        self._backlog = Backlog()
        self._lanes = _Lanes()

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
            RequestInvalid: Triton refuses the request itself, such as more images than its largest batch.
            Overloaded: every queue is full, or no server answered in time; `retry_after` is the wait for the backlog.
            InferenceUnavailable: no server is up, or it failed on this request.
        """
        request = _request(images, outputs, bulk)
        hint = partial(self._backlog.retry_after_s, bulk=bulk)
        attempt = Attempts(self._balance, self._timeout_s, len(images), hint)
        with self._backlog.of(len(images), bulk=bulk):
            for server in attempt:
                try:
                    with attempt.calling() as deadline_s:
                        answer = await self._call(server, request, deadline_s)
                except InferenceServerException as error:
                    await asyncio.sleep(attempt.pause_after(error))
                else:
                    return _read(answer, len(images), outputs)
            raise attempt.failure

    async def _call(self, server: int, request: dict[str, Any], deadline_s: float) -> triton.InferResult:
        model = self._lanes.model(server, request)
        try:
            return await self._servers[server].infer(model, client_timeout=deadline_s, **request)
        except InferenceServerException as error:
            if not self._lanes.closed(server, model, error):
                raise
        return await self._servers[server].infer(MODEL, client_timeout=deadline_s, **request)

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
                answer = await server.get_model_config(MODEL, client_timeout=_PROBE_TIMEOUT_S)
            except InferenceServerException:
                continue
            return _runtime(answer)
        raise InferenceUnavailable

    async def close(self) -> None:
        """Close every channel."""
        for server in self._servers:
            await server.close()


class _Lanes:
    """Which model of a server takes a request: `INTERACTIVE` for people's, until the server says that it has none."""

    def __init__(self) -> None:
        self._closed_until: dict[int, float] = {}

    def model(self, server: int, request: Mapping[str, Any]) -> str:
        closed = time.monotonic() < self._closed_until.get(server, 0.0)
        return MODEL if closed or request["priority"] == _BULK else INTERACTIVE

    def closed(self, server: int, model: str, error: InferenceServerException) -> bool:
        """Whether the call failed because the server has no such lane; asked for again only after a while."""
        if model == MODEL or "unknown model" not in (error.message() or ""):
            return False
        self._closed_until[server] = time.monotonic() + _LANE_CLOSED_S
        return True


def _request(images: Sequence[bytes], outputs: Sequence[str], bulk: bool) -> dict[str, Any]:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    encoded = np.empty((len(images), 1), object)
    encoded[:, 0] = images
    tensor.set_data_from_numpy(encoded)
    return {
        "inputs": [tensor],
        "outputs": [triton.InferRequestedOutput(name) for name in outputs],
        "priority": _BULK if bulk else _INTERACTIVE,
    }


def _runtime(answer: Any) -> Runtime:
    parameters = answer.config.parameters
    return Runtime(parameters["runtime"].string_value, parameters["precision"].string_value)


def _read(answer: triton.InferResult, count: int, outputs: Sequence[str]) -> Outputs:
    read: Outputs = {}
    for name in outputs:
        values = answer.as_numpy(name)
        # A stub with the wrong NumPy answers "OK" with nothing inside; that must never pass for a result.
        if values is None or values.shape != (count, *OUTPUT_SHAPES[name]) or not np.isfinite(values).all():
            raise InferenceUnavailable(f"The model server's output {name!r} is malformed.")
        read[name] = values
    return read
