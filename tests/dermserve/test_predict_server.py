"""Servers that are busy, hang, fail or answer nonsense, and how long `dermserve predict` bears with them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from dermserve.errors import InferenceUnavailable
from dermserve.predict import doors
from tests.dermserve.test_client import Answer, healthy, hung, serving
from tests.dermserve.test_predict import _hasty, images, rows, run  # noqa: F401  a fixture


def busy(request: Any, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("answer", [busy, hung])
def test_a_server_that_answers_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    client = doors.AsyncTritonClient
    monkeypatch.setattr(doors, "AsyncTritonClient", lambda urls: client(urls, timeout_s=0.2))
    folder, served = images(tmp_path / "in", *(f"{i}.jpg" for i in range(4))), 0

    def one_and_no_more(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal served
        served += 1
        return healthy(request, context) if served == 1 else answer(request, context)

    start = time.monotonic()
    with serving(one_and_no_more) as url:
        result = run(folder, tmp_path / "out.csv", url, "--concurrency", "1", "--give-up-after", "0.5")
    assert isinstance(result.exception, InferenceUnavailable)
    assert "Triton has answered no request for" in result.exception.detail
    assert "1 rows are in" in result.exception.detail
    assert "continue with --resume" in result.exception.detail
    assert 0.5 < time.monotonic() - start < 5


def test_a_busy_server_that_answers_now_and_then_is_not_given_up(tmp_path: Path) -> None:
    folder, turn = images(tmp_path / "in", *(f"{i}.jpg" for i in range(6))), 0

    def every_fourth(request: Any, context: grpc.ServicerContext) -> Any:
        nonlocal turn
        turn += 1
        return healthy(request, context) if turn % 4 == 0 else busy(request, context)

    with serving(every_fourth) as url:
        result = run(folder, tmp_path / "out.csv", url, "--concurrency", "1", "--give-up-after", "0.4")
    assert result.exit_code == 0, result.exception


def test_an_image_that_hangs_the_server_is_given_up_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = doors.AsyncTritonClient
    monkeypatch.setattr(doors, "AsyncTritonClient", lambda urls: client(urls, timeout_s=0.3))
    folder, out = images(tmp_path / "in", *(f"{i}.jpg" for i in range(6))), tmp_path / "out.csv"

    def hangs_on_one(request: Any, context: grpc.ServicerContext) -> Any:
        return (hung if request.raw_input_contents[0].endswith(b"2.jpg") else healthy)(request, context)

    with serving(hangs_on_one) as url:
        result = run(folder, out, url, "--concurrency", "1", "--give-up-after", "0.1")
    assert result.exit_code == 1, result.exception
    assert [row[0] for row in rows(out)] == [f"{i}.jpg" for i in range(6) if i != 2]
    assert [row[:2] for row in rows(tmp_path / "out.errors.csv")] == [["2.jpg", "overloaded"]]


def test_what_is_really_wrong_is_not_hidden_behind_no_server(tmp_path: Path) -> None:
    def malformed(request: Any, context: grpc.ServicerContext) -> Any:
        answer = healthy(request, context)
        answer.raw_output_contents[0] = np.full(4, np.nan, np.float32).tobytes()
        return answer

    with serving(malformed) as url:
        result = run(images(tmp_path / "in", "a.jpg"), tmp_path / "out.csv", url)
    assert isinstance(result.exception, InferenceUnavailable)
    assert "output 'probabilities' is malformed" in result.exception.detail
    assert "No Triton answers" not in result.exception.detail
