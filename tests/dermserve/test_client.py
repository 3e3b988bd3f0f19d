"""The retry rule, without a server; tests/system talks to a real one."""

from __future__ import annotations

import asyncio
import time

import pytest
from tritonclient.utils import InferenceServerException

from dermserve.client import AsyncTritonClient, TritonClient, _Attempts, _translate
from dermserve.errors import DermserveError, ImageUndecodable, InferenceUnavailable, Overloaded
from dermserve.sample import jpeg


@pytest.mark.parametrize(
    ("message", "status", "error"),
    [
        ("in ensemble 'melanoma', [image_undecodable] image 1: cut", "StatusCode.INVALID_ARGUMENT", ImageUndecodable),
        ("[request id: <id_unknown>] Exceeds maximum queue size", "StatusCode.UNAVAILABLE", Overloaded),
        ("Request timeout expired", "StatusCode.UNAVAILABLE", Overloaded),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", Overloaded),
        ("Socket closed", "StatusCode.UNAVAILABLE", InferenceUnavailable),
        ("Stub process 'classifier_0_0' is not healthy.", "StatusCode.INTERNAL", InferenceUnavailable),
    ],
)
def test_what_triton_says_becomes_an_error_of_ours(message: str, status: str, error: type[DermserveError]) -> None:
    assert type(_translate(InferenceServerException(message, status))) is error


def test_every_server_is_tried_at_once_before_any_pause() -> None:
    attempts = _Attempts(3, turn=1, timeout_s=30)
    dead = InferenceServerException("Socket closed", "StatusCode.UNAVAILABLE")
    tried, pauses = [], []
    for server in attempts:
        tried.append(server)
        pauses.append(attempts.pause_after(dead))
        if len(tried) == 4:
            break
    assert tried == [1, 2, 0, 1]
    assert pauses[:2] == [0, 0]
    assert 0 < pauses[2] <= 0.05


def test_a_refused_image_is_not_sent_twice() -> None:
    attempts = _Attempts(2, turn=0, timeout_s=30)
    next(iter(attempts))
    with pytest.raises(ImageUndecodable):
        attempts.pause_after(
            InferenceServerException("[image_undecodable] image 0: cut", "StatusCode.INVALID_ARGUMENT")
        )


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
