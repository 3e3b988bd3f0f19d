"""Client of the model `melanoma` on one or several Triton servers, for threads and for asyncio.

One channel a server, a deadline for every call, and retries only where they are safe and useful: inference has no side
effect, so a call that met a dead, hung or restarting server is sent again, to the next one in turn, where all have been
tried after a jittered pause. What every server would refuse alike is sent once.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from dermserve.backlog import Backlog
from dermserve.errors import DermserveError, InferenceUnavailable, Overloaded, RequestInvalid, from_wire

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

_RETRY_FOR_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 2.0
_LANE_CLOSED_S: Final = 10.0
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
    # With http_proxy in the environment, gRPC would send patients' images, unencrypted, to that proxy.
    ("grpc.enable_http_proxy", 0),
]
# What passes by itself: a server that is down, stops or loads. Python stubs that died are found by their message.
_PASSING: Final = ("UNAVAILABLE", "NOT_FOUND", "CANCELLED")
_BATCH_LIMIT: Final = re.compile(r"batch-size must be <= (\d+)")

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
        self._turn = 0
        self._backlog = Backlog()
        self._lanes = _Lanes()

    def infer(self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False) -> Outputs:
        """See `AsyncTritonClient.infer`."""
        request = _request(images, outputs, bulk)
        self._turn += 1
        hint = partial(self._backlog.retry_after_s, bulk=bulk)
        attempt = _Attempts(len(self._servers), self._turn, self._timeout_s, len(images), hint)
        with self._backlog.of(len(images), bulk=bulk):
            for server in attempt:
                try:
                    answer = self._call(server, request, attempt.deadline_s)
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
        urls: gRPC addresses, host:port; calls go to them in turn.
        timeout_s: deadline of one `infer`, retries included, in seconds.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 30.0) -> None:
        self._servers = [triton_aio.InferenceServerClient(url, channel_args=_CHANNEL) for url in urls]
        self._timeout_s = timeout_s
        self._turn = 0
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
        self._turn += 1
        hint = partial(self._backlog.retry_after_s, bulk=bulk)
        attempt = _Attempts(len(self._servers), self._turn, self._timeout_s, len(images), hint)
        with self._backlog.of(len(images), bulk=bulk):
            for server in attempt:
                try:
                    answer = await self._call(server, request, attempt.deadline_s)
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


class _Attempts:
    """Which server to try next, and when to give up: the part of the retry loop that both clients share."""

    def __init__(
        self, servers: int, turn: int, timeout_s: float, images: int = 1, hint: Callable[[], int | None] = lambda: None
    ) -> None:
        self._servers = servers
        self._turn = turn
        self._start = time.monotonic()
        self._timeout_s = timeout_s
        self._images = images
        self._hint = hint
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0
        self.failure: DermserveError = InferenceUnavailable()

    def __iter__(self) -> Iterator[int]:
        while self._tried < self._servers or self._elapsed_s < _RETRY_FOR_S:
            if self._tried and self._remaining_s <= 0:
                return
            yield (self._turn + self._tried) % self._servers
            self._tried += 1

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def _remaining_s(self) -> float:
        return self._timeout_s - self._elapsed_s

    @property
    def _untried(self) -> bool:
        """Whether a server is left that this call has not been sent to."""
        return self._tried + 1 < self._servers

    @property
    def deadline_s(self) -> float:
        """Seconds for this attempt: half of what remains while another server could answer if this one hangs."""
        return max(0.001, self._remaining_s / 2 if self._untried else self._remaining_s)

    def pause_after(self, error: InferenceServerException) -> float:
        """Note the failure; returns the seconds to wait before the next attempt, or raises when none would help."""
        self.failure = _translate(error, self._images)
        if isinstance(self.failure, Overloaded):
            self.failure.retry_after = self._hint()
        elsewhere = isinstance(self.failure, Overloaded) and self._untried  # full or hung, and another may not be
        down = isinstance(self.failure, InferenceUnavailable) and _is_passing(error)
        if not (elsewhere or down) or self._remaining_s <= 0:
            raise self.failure from error
        if self._untried:
            return 0.0  # the next server may well be alive
        pause = random.uniform(0.5, 1.0) * self._pause_s  # noqa: S311  jitter, not a secret
        self._pause_s = min(2 * self._pause_s, 1.0)
        return min(pause, self._remaining_s)


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


def _translate(error: InferenceServerException, images: int = 1) -> DermserveError:
    message = error.message() or ""
    known = from_wire(message)
    if known is not None:
        refused, index = known
        return refused if index is None or images == 1 else type(refused)(f"image {index}: {refused.detail}")
    if "maximum queue size" in message or "timeout expired" in message:
        return Overloaded()
    if _is_deadline(error):
        return Overloaded("The model server did not answer in time; please try again shortly.")
    if _is_passing(error):
        return InferenceUnavailable()
    if "INVALID_ARGUMENT" in str(error.status()):
        limit = _BATCH_LIMIT.search(message)
        return RequestInvalid(
            f"At most {limit[1]} images go into one request." if limit else "The model server refuses such a request."
        )
    return InferenceUnavailable("The model server failed on this request.")


def _is_deadline(error: InferenceServerException) -> bool:
    return "DEADLINE_EXCEEDED" in str(error.status())


def _is_passing(error: InferenceServerException) -> bool:
    """Whether the same request may succeed soon; a model that is unknown or not ready may still be loading."""
    status, message = str(error.status()), (error.message() or "").lower()
    if "INTERNAL" in status:
        return "stub process" in message
    return status.removeprefix("StatusCode.") in _PASSING or "unknown model" in message or "is not ready" in message
