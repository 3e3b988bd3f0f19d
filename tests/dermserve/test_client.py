"""The retry rule, against servers that hang or refuse as told; tests/system talks to a real Triton."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from dermserve.balancing import Balance
from dermserve.client import AsyncTritonClient, TritonClient
from dermserve.errors import DermserveError, ImageUndecodable, InferenceUnavailable, Overloaded, RequestInvalid
from dermserve.retries import Attempts, translate
from dermserve.sample import jpeg

Answer = Callable[[Any, grpc.ServicerContext], Any]


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[str]:
    """The address of a gRPC server that answers each inference as `answer` says; by default on a free port."""

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  Triton's name
            return answer(request, context)

    server = grpc.server(ThreadPoolExecutor(16))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def healthy(request: Any, context: grpc.ServicerContext) -> Any:
    return answering(request, 0.25, 0.5)


def answering(request: Any, probability: float, ood: float) -> Any:
    """The outputs that were asked for, of `probabilities` and `ood`, with one value each."""
    count = request.inputs[0].shape[0]
    values = {"probabilities": np.full((count, 4), probability), "ood": np.full((count, 1), ood)}
    wanted = [output.name for output in request.outputs]
    return service_pb2.ModelInferResponse(
        outputs=[
            service_pb2.ModelInferResponse.InferOutputTensor(name=name, datatype="FP32", shape=values[name].shape)
            for name in wanted
        ],
        raw_output_contents=[values[name].astype(np.float32).tobytes() for name in wanted],
    )


def hung(request: Any, context: grpc.ServicerContext) -> Any:
    while context.is_active():
        time.sleep(0.01)


def failing(code: grpc.StatusCode, message: str, times: int, calls: list[float]) -> Answer:
    """Fails the first `times` calls, and notes when each came."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        calls.append(time.monotonic())
        if len(calls) <= times:
            context.abort(code, message)
        return healthy(request, context)

    return answer


def infer(urls: Sequence[str], images: int = 1, timeout_s: float = 30.0, calls: int = 1) -> None:
    client = TritonClient(urls, timeout_s=timeout_s)
    try:
        for _ in range(calls):
            assert client.infer([jpeg(0)] * images, ["probabilities"])["probabilities"].shape == (images, 4)
    finally:
        client.close()


BATCH_LIMIT = "[request id: <id_unknown>] inference request batch-size must be <= 64 for 'melanoma'"


@pytest.mark.parametrize(
    ("message", "status", "error"),
    [
        ("in ensemble 'melanoma', [image_undecodable] image 1: cut", "StatusCode.INVALID_ARGUMENT", ImageUndecodable),
        ("[request id: <id_unknown>] Exceeds maximum queue size", "StatusCode.UNAVAILABLE", Overloaded),
        ("Request timeout expired", "StatusCode.UNAVAILABLE", Overloaded),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", Overloaded),
        ("Socket closed", "StatusCode.UNAVAILABLE", InferenceUnavailable),
        ("Stub process 'classifier_0_0' is not healthy.", "StatusCode.INTERNAL", InferenceUnavailable),
        ("Request for unknown model: 'melanoma' is not found", "StatusCode.NOT_FOUND", InferenceUnavailable),
        ("ValueError: in execute", "StatusCode.INTERNAL", InferenceUnavailable),
        (BATCH_LIMIT, "StatusCode.INVALID_ARGUMENT", RequestInvalid),
        ("unexpected inference output 'ood' for model", "StatusCode.INVALID_ARGUMENT", RequestInvalid),
    ],
)
def test_what_triton_says_becomes_an_error_of_ours(message: str, status: str, error: type[DermserveError]) -> None:
    assert type(translate(InferenceServerException(message, status))) is error


def test_every_server_is_tried_at_once_before_any_pause() -> None:
    attempts = Attempts(Balance(3), timeout_s=30)
    dead = InferenceServerException("Socket closed", "StatusCode.UNAVAILABLE")
    tried, pauses = [], []
    for server in attempts:
        tried.append(server)
        pauses.append(attempts.pause_after(dead))
        if len(tried) == 4:
            break
    assert tried[:3] == [1, 2, 0]
    assert pauses[:2] == [0, 0]
    assert 0 < pauses[2] <= 0.05


def test_a_refused_image_is_not_sent_twice() -> None:
    attempts = Attempts(Balance(2), timeout_s=30)
    next(iter(attempts))
    with pytest.raises(ImageUndecodable):
        attempts.pause_after(
            InferenceServerException("[image_undecodable] image 0: cut", "StatusCode.INVALID_ARGUMENT")
        )


@pytest.mark.parametrize(("images", "detail"), [(1, "cut"), (3, "image 2: cut")])
def test_the_refused_image_is_named_where_there_are_several(images: int, detail: str) -> None:
    line = f"in ensemble 'melanoma', [image_undecodable] image {images - 1}: cut"
    refuse = failing(grpc.StatusCode.INVALID_ARGUMENT, line, 1, [])
    with serving(refuse) as url, pytest.raises(ImageUndecodable) as caught:
        infer([url], images)
    assert caught.value.detail == detail


@pytest.mark.parametrize(
    ("code", "message", "error", "detail"),
    [
        ("INVALID_ARGUMENT", BATCH_LIMIT, RequestInvalid, "At most 64 images go into one request."),
        ("INVALID_ARGUMENT", "unexpected 'x' in /opt/m", RequestInvalid, "The model server refuses such a request."),
        ("INTERNAL", "ValueError: /opt/m", InferenceUnavailable, "The model server failed on this request."),
    ],
)
def test_what_every_attempt_would_meet_is_sent_once_and_told_without_internals(
    code: str, message: str, error: type[DermserveError], detail: str
) -> None:
    calls: list[float] = []
    with serving(failing(grpc.StatusCode[code], message, 99, calls)) as url, pytest.raises(error) as caught:
        infer([url])
    assert caught.value.detail == detail
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("UNAVAILABLE", "Request for unknown model: 'melanoma' has no available versions"),
        ("NOT_FOUND", "Request for unknown model: 'melanoma' is not found"),
        ("INTERNAL", "Failed to process the request(s), message: Stub process 'preprocess_0_1' is not healthy."),
    ],
)
def test_a_server_that_loads_or_lost_a_stub_is_asked_again(code: str, message: str) -> None:
    calls: list[float] = []
    with serving(failing(grpc.StatusCode[code], message, 2, calls)) as url:
        infer([url])
    assert len(calls) == 3


def test_no_call_fails_while_one_server_of_several_hangs() -> None:
    with serving(hung) as slow, serving(healthy) as well:
        start = time.monotonic()
        infer([slow, well], timeout_s=2, calls=4)  # two of them start at the server that hangs
        assert time.monotonic() - start < 2 * 1.5

        async def twice() -> None:
            client = AsyncTritonClient([slow, well], timeout_s=2)
            try:
                await asyncio.gather(*(client.infer([jpeg(0)], ["probabilities"]) for _ in range(2)))
            finally:
                await client.close()

        asyncio.run(twice())


def test_a_server_that_hung_is_left_alone_while_another_answers() -> None:
    met: list[float] = []

    def slow(request: Any, context: grpc.ServicerContext) -> Any:
        met.append(time.monotonic())
        hung(request, context)

    with serving(slow) as one, serving(healthy) as well:
        infer([one, well], timeout_s=1, calls=30)
    assert len(met) <= 3  # without a rest: every second call


# 12 s: the first attempt alone lasts longer than failures that pass are retried for.
@pytest.mark.parametrize("timeout_s", [1.0, pytest.param(12.0, marks=pytest.mark.slow)])
def test_servers_that_all_hang_are_reported_at_the_deadline(timeout_s: float) -> None:
    with serving(hung) as one, serving(hung) as other, serving(healthy) as well:
        start = time.monotonic()
        with pytest.raises(Overloaded, match="did not answer in time"):
            infer([one, other], timeout_s=timeout_s)
        assert timeout_s * 0.9 < time.monotonic() - start < timeout_s + 0.5
        infer([well, one, other], timeout_s=timeout_s)  # 1/2 and 1/4 of the time go to those that hang


def test_images_never_go_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("grpc_proxy", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        client = TritonClient(["127.0.0.1:9"], timeout_s=0.5)
        with pytest.raises(InferenceUnavailable):
            client.infer([jpeg(0)], ["probabilities"])
        client.close()

        async def call() -> None:
            other = AsyncTritonClient(["127.0.0.1:9"], timeout_s=0.5)
            try:
                await other.infer([jpeg(0)], ["probabilities"])
            finally:
                await other.close()

        with pytest.raises(InferenceUnavailable):
            asyncio.run(call())
        proxy.settimeout(0.2)
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_dead_server_is_reported_within_the_deadline() -> None:
    start = time.monotonic()
    client = TritonClient(["127.0.0.1:9"], timeout_s=1.0)
    with pytest.raises(InferenceUnavailable) as caught:
        client.infer([jpeg(0)], ["probabilities"])
    assert caught.value.retry_after is not None
    assert time.monotonic() - start < 5
    assert not client.ready()
    client.close()


def test_the_asyncio_client_fails_the_same_way() -> None:
    async def call() -> None:
        client = AsyncTritonClient(["127.0.0.1:9", "127.0.0.1:10"], timeout_s=0.5)
        try:
            assert not await client.ready()
            with pytest.raises(InferenceUnavailable):
                await client.runtime()
            await client.infer([jpeg(0)], ["probabilities"])
        finally:
            await client.close()

    with pytest.raises(InferenceUnavailable):
        asyncio.run(call())
