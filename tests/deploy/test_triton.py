"""The embedded Triton: queues, lanes, refusals, closed interfaces, figures and traces."""

from __future__ import annotations

import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from dermserve import image, quality, sample
from dermserve.client import OUTPUT_SHAPES, TritonClient
from dermserve.errors import DermserveError, ImageUndecodable, Overloaded
from tests.deploy.embedded import Embedded, running

IMAGES = [sample.jpeg(seed) for seed in range(6)]
BRIGHTNESS = [float(image.prepare(data).pixels.mean()) for data in IMAGES]
SLOW_S = 0.1
QUEUE = 12


class Outcome(NamedTuple):
    """What became of a request: `answer` or `error`; `end` is the order in which outcomes came."""

    answer: Any
    error: DermserveError | None
    end: int


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One instance, 0.1 s for an image, room for 6 bulk and 3 interactive requests."""
    with running(tmp_path_factory.mktemp("slow"), slow_s=SLOW_S, queue=QUEUE, cpu_cores=1) as server:
        yield server


def send(client: TritonClient, requests: Sequence[Sequence[int]], *, bulk: Callable[[int], bool]) -> list[Outcome]:
    """All at once; a request names images by their index."""
    order, barrier = count(), threading.Barrier(len(requests))

    def one(index: int) -> Outcome:
        barrier.wait()
        try:
            images = [IMAGES[number] for number in requests[index]]
            answer = client.infer(images, ["probabilities"], bulk=bulk(index))["probabilities"]
            return Outcome(answer[:, 0], None, next(order))
        except DermserveError as error:
            return Outcome(None, error, next(order))

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, range(len(requests))))


@pytest.mark.parametrize("name", OUTPUT_SHAPES)
def test_every_output_can_be_asked_for_alone(slow: Embedded, name: str) -> None:
    assert slow.client().infer(IMAGES[:2], [name])[name].shape == (2, *OUTPUT_SHAPES[name])


@pytest.mark.parametrize("size", [1, 3])
def test_past_the_queue_every_request_is_answered_rightly_or_refused_with_a_hint(slow: Embedded, size: int) -> None:
    client = slow.client()
    client.infer(IMAGES[:1], ["probabilities"], bulk=True)
    requests = [[(start + step) % len(IMAGES) for step in range(size)] for start in range(40)]
    outcomes = send(client, requests, bulk=lambda _: True)
    refused = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert {type(error) for error in refused} == {Overloaded}
    assert all(1 <= (error.retry_after or 0) <= 60 for error in refused)
    answered = [
        (numbers, outcome.answer) for numbers, outcome in zip(requests, outcomes, strict=True) if not outcome.error
    ]
    assert len(answered) + len(refused) == 40
    assert len(answered) > QUEUE // 2, "what fits into the queue is answered"
    for numbers, answer in answered:
        assert answer == pytest.approx([BRIGHTNESS[number] for number in numbers], abs=0.01)
    # Up to 39 requests of 0.1 s an image stood before the first that was refused.
    assert max(error.retry_after or 0 for error in refused) >= 2
    assert client.infer(IMAGES[:1], ["probabilities"])["probabilities"][0, 0] == pytest.approx(BRIGHTNESS[0], abs=0.01)


@pytest.mark.parametrize("own_lane", [True, False])
def test_a_person_overtakes_the_bulk_stream_and_gets_in_where_it_is_refused(slow: Embedded, own_lane: bool) -> None:
    client = slow.client()
    if not own_lane:
        client._lanes._closed_until[0] = math.inf  # as on a server with a GPU: the queue's priority decides
    halt = threading.Event()
    outcomes: list[DermserveError | None] = []

    def stream() -> None:
        while not halt.is_set():
            try:
                client.infer(IMAGES[:1], ["probabilities"], bulk=True)
                outcomes.append(None)
            except Overloaded as error:
                outcomes.append(error)
                time.sleep(0.05)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(16):
            pool.submit(stream)
        try:
            deadline = time.monotonic() + 30
            while not any(outcomes) and time.monotonic() < deadline:
                time.sleep(0.05)
            before = outcomes.count(None)
            for _ in range(5):
                client.infer(IMAGES[:1], ["probabilities"])
            during = outcomes.count(None) - before
        finally:
            halt.set()
    assert any(outcomes), "the bulk queue was full"
    # Each person's image waits for the four at most that were handed over together, not for the six in the queue.
    assert during <= 5 * (2 if own_lane else 6)


def test_a_request_that_waits_longer_than_anybody_would_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, slow_s=0.5, cpu_cores=1, inference_timeout_s=6.0) as server:
        outcomes = send(server.client(), [[number % 6] for number in range(12)], bulk=lambda _: False)
    answered = [outcome for outcome in outcomes if outcome.error is None]
    refused = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert {type(error) for error in refused} == {Overloaded}, "2 s in the queue is a third of 6 s"
    assert 2 <= len(answered) <= 8
    assert all(1 <= (error.retry_after or 0) <= 60 for error in refused)


def test_a_server_without_a_lane_for_people_takes_their_images_all_the_same(
    slow: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = slow.client()
    monkeypatch.setattr("dermserve.client.INTERACTIVE", "nowhere")
    before = slow.counts("melanoma").inference_count
    for number in range(3):
        answer = client.infer(IMAGES[number : number + 1], ["probabilities"])["probabilities"]
        assert answer[0, 0] == pytest.approx(BRIGHTNESS[number], abs=0.01)
    assert slow.counts("melanoma").inference_count == before + 3


def test_requests_that_are_handed_over_together_keep_their_own_answers_and_errors(slow: Embedded) -> None:
    client = slow.client()
    damaged = b"\xff\xd8\xff" + bytes(100)
    before = slow.counts("melanoma").execution_count

    def one(number: int) -> Any:
        try:
            return client.infer([damaged if number == 2 else IMAGES[number]], ["probabilities"], bulk=True)
        except ImageUndecodable as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, range(6)))
    assert slow.counts("melanoma").execution_count - before < 6, "several were handed over at a time"
    assert isinstance(found.pop(2), ImageUndecodable)
    expected = [BRIGHTNESS[number] for number in (0, 1, 3, 4, 5)]
    assert [answer["probabilities"][0, 0] for answer in found] == pytest.approx(expected, abs=0.01)


def test_a_server_with_room_is_asked_before_a_sender_is_refused(slow: Embedded, tmp_path: Path) -> None:
    with running(tmp_path, slow_s=0.0, cpu_cores=1) as idle:
        both = TritonClient([slow.grpc, idle.grpc])
        outcomes = send(both, [[number % 6] for number in range(40)], bulk=lambda _: True)
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == []


def test_flags_are_those_of_the_prepared_image(slow: Embedded) -> None:
    flags = slow.client().infer(IMAGES[:2], ["quality"])["quality"]
    assert flags == pytest.approx(
        np.stack([quality.measure(image.prepare(data).pixels) for data in IMAGES[:2]]), abs=1e-6
    )


def test_what_is_not_asked_for_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path, slow_s=0.0, cpu_cores=1) as server:
        client = server.client()
        cost = {}
        for outputs in (["probabilities"], ["probabilities", "quality", "ood"]):
            client.infer(IMAGES[:1], outputs, bulk=True)
            before = server.counts("melanoma").inference_stats.compute_infer.ns
            for _ in range(10):
                client.infer(IMAGES * 5, outputs, bulk=True)
            cost[len(outputs)] = server.counts("melanoma").inference_stats.compute_infer.ns - before
    assert cost[1] < 0.9 * cost[3], "flags and distance take half as long as decoding"


def test_flags_speak_of_the_photograph_where_hair_is_painted_over(tmp_path: Path) -> None:
    hairy = max(IMAGES, key=lambda data: quality.measure(image.prepare(data).pixels)[1])
    sent, painted = (image.prepare(hairy, remove_artifacts=removed).pixels for removed in (False, True))
    flags = quality.measure(sent)
    assert abs(flags[1] - quality.measure(painted)[1]) > 0.01, "painting over changes this flag"
    card = {"remove_artifacts": True, "preprocessing": image.preprocessing_hash(remove_artifacts=True)}
    with running(tmp_path, slow_s=0.0, cpu_cores=1, card=card) as server:
        answer = server.client().infer([hairy, hairy], ["probabilities", "quality"])
    assert answer["quality"] == pytest.approx(np.stack([flags, flags]), abs=1e-6)
    assert answer["probabilities"][:, 0] == pytest.approx([float(painted.mean())] * 2, abs=0.01)


@pytest.mark.parametrize("path", ["v2/repository/index", "v2/repository/models/melanoma/load",
    "v2/repository/models/melanoma/unload", "v2/systemsharedmemory/status", "v2/systemsharedmemory/region/x/register",
    "v2/systemsharedmemory/unregister", "v2/cudasharedmemory/status", "v2/cudasharedmemory/region/x/register",
    "v2/cudasharedmemory/unregister", "v2/trace/setting", "v2/models/melanoma/trace/setting", "v2/logging"])  # fmt: skip
def test_management_is_closed_over_http(slow: Embedded, path: str) -> None:
    for method in ("GET", "POST"):
        status, text = slow.get(f"/{path}", method)
        assert status in (403, 405), (method, text)
        if status == 403:
            assert "restricted" in text
    assert 403 in (slow.get(f"/{path}", "GET")[0], slow.get(f"/{path}", "POST")[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda raw: raw.get_model_repository_index(),
        lambda raw: raw.load_model("melanoma"),
        lambda raw: raw.unload_model("melanoma"),
        lambda raw: raw.get_system_shared_memory_status(),
        lambda raw: raw.register_system_shared_memory("x", "/x", 8),
        lambda raw: raw.unregister_system_shared_memory(),
        lambda raw: raw.get_cuda_shared_memory_status(),
        lambda raw: raw.register_cuda_shared_memory("x", b"eHg=", 0, 8),
        lambda raw: raw.unregister_cuda_shared_memory(),
        lambda raw: raw.get_trace_settings(),
        lambda raw: raw.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
        lambda raw: raw.get_log_settings(),
        lambda raw: raw.update_log_settings({"log_verbose_level": 1}),
    ],
)
def test_management_is_closed_over_grpc(slow: Embedded, call: Callable[[Any], Any]) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        call(slow.raw)


def test_figures_tell_of_queues_and_hold_no_summaries(slow: Embedded) -> None:
    slow.client().infer(IMAGES[:1], ["probabilities"], bulk=True)
    text = slow.metrics()
    for name in ("nv_inference_queue_duration_us", "nv_inference_pending_request_count", "nv_inference_exec_count"):
        assert f'{name}{{model="melanoma",version="1"}}' in text
    assert "summary" not in text


def test_traces_go_to_the_collector_and_hold_no_image(tmp_path: Path) -> None:
    received: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with running(tmp_path, slow_s=0.0, cpu_cores=1, triton_trace_url=url, triton_trace_rate=1) as server:
            server.client().infer(IMAGES[:1], ["probabilities"], bulk=True)
        collector.shutdown()
    resources = [resource for body in received for resource in json.loads(body)["resourceSpans"]]
    spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
    named = {
        item["value"]["stringValue"]
        for span in spans
        for item in span.get("attributes", [])
        if item["key"] == "triton.model_name"
    }
    assert "melanoma" in named
    assert sum(map(len, received)) < len(IMAGES[0])
