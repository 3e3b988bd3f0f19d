"""Many images in one request: each with its own answer, none spoiling another, scored while later ones come."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dermserve import image, sample
from dermserve.backlog import Backlog
from dermserve.errors import Overloaded
from frontend import batch
from frontend import intake as intake_module
from frontend.bodies import stream
from tests.frontend.conftest import Server, execute, new_key

PATH = "/v1/predictions/batch"
JPEG = {"Content-Type": "image/jpeg"}
ONE = sample.jpeg(0)
EDGE = {"Content-Type": "multipart/form-data; boundary=edge"}


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", file) for file in files]


def send(api: httpx.Client, *files: tuple[str, bytes], **query: str) -> list[dict[str, Any]]:
    response = api.post(PATH, files=form(*files), params=query)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    assert [item["index"] for item in items] == list(range(len(files)))
    return items


def part(data: bytes, *headers: str, name: str = "file", edge: str = "edge") -> bytes:
    head = [f"--{edge}", f'Content-Disposition: form-data; name="{name}"; filename="a.jpg"', *headers, "", ""]
    return "\r\n".join(head).encode() + data + b"\r\n"


def different(number: int) -> list[bytes]:
    return [ONE + number.to_bytes(4) for number in range(number)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"


def nothing_held(server: Server) -> bool:
    intake = server.services().intake
    return (intake._bytes, intake._requests, intake._batches, intake._holders) == (0, 0, 0, {})


def test_every_image_has_the_answer_of_the_single_door(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    """New, repeated, of the wrong kind, empty, damaged, too small, too large: in the order sent, and with its body."""
    known = api.post("/v1/predictions", content=jpegs[0], headers=JPEG | {"X-Filename": "known.jpg"})
    assert known.status_code == 201
    files = [
        ("new.jpg", jpegs[1]),
        ("known.jpg", jpegs[0]),
        ("notes.txt", b"not an image"),
        ("empty.jpg", b""),
        ("damaged.jpg", jpegs[2][:-2000]),
        ("large.jpg", jpegs[3] + bytes(image.MAX_BYTES)),
        ("again.jpg", jpegs[0]),
        ("other.jpg", jpegs[3]),
    ]
    items = send(api, *files)
    assert [item["filename"] for item in items] == [name for name, _ in files]
    assert [item["status"] for item in items] == [201, 200, 415, 422, 422, 413, 200, 201]
    assert items[1]["result"] == known.json()
    for item, (_, data) in zip(items, files, strict=True):
        alone = api.post("/v1/predictions", content=data, headers=JPEG)
        if item["status"] < 300:
            assert set(item) == {"index", "filename", "status", "result"}
            assert alone.json() == item["result"]
        else:
            assert set(item) == {"index", "filename", "status", "problem"}
            assert (alone.status_code, alone.json()["code"]) == (item["status"], item["problem"]["code"])
    assert nothing_held(server)


def test_parts_say_something_about_their_images(api: httpx.Client, jpegs: list[bytes]) -> None:
    body = (
        part(
            jpegs[0], "X-Lesion: left%20arm", "X-Body-Site: upper extremity", "X-Note: caf%C3%A9", "Idempotency-Key: k1"
        )
        + part(jpegs[1], "idempotency-key: k1")
        + part(jpegs[2], "X-Body-Site: nowhere")
        + part(jpegs[3], "Idempotency-Key: " + "k" * 256)
        + b"--edge--\r\n"
    )
    items = api.post(PATH, content=body, headers=EDGE).json()["items"]
    # Which of two images with one key comes first is the database's to say; here one is new, the other a conflict.
    assert sorted(item["status"] for item in items[:2]) == [201, 409]
    assert [item["status"] for item in items[2:]] == [422, 422]
    assert {item["problem"]["code"] for item in items[2:]} == {"request_invalid"}
    [taken] = [item for item in items[:2] if item["status"] == 201]
    if taken is items[0]:
        said = {"lesion": "left arm", "body_site": "upper extremity", "note": "café"}
        assert taken["result"]["context"] == said
        assert api.get(f"/v1/predictions/{taken['result']['id']}").json()["context"] == said


def test_cam_only_when_asked_for(api: httpx.Client, jpegs: list[bytes]) -> None:
    assert "cam" not in send(api, ("a.jpg", jpegs[0]))[0]["result"]
    assert send(api, ("a.jpg", jpegs[0]), cam="true")[0]["result"]["cam"]["shape"] == [10, 10]


def test_names_are_cleaned_and_fields_passed_over(api: httpx.Client, jpegs: list[bytes]) -> None:
    files = [
        ("file", ("../../etc/läsion 1.jpg", jpegs[0])),
        ("comment", (None, b"x" * 1000)),
        ("file", ("b.jpg", jpegs[1])),
    ]
    items = api.post(PATH, files=files).json()["items"]
    assert [item["filename"] for item in items] == ["läsion 1.jpg", "b.jpg"]
    assert {item["status"] for item in items} == {201}


def test_images_are_scored_while_later_ones_still_come(server: Server, jpegs: list[bytes]) -> None:
    """And the results that were committed before the connection broke are there for the next attempt."""
    key = new_key(server.settings)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {EDGE['Content-Type']}\r\nContent-Length: 99999999\r\n"
        f"Authorization: Bearer {key}\r\n\r\n"
    )
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10) as connection:
        connection.sendall(head.encode() + part(jpegs[0]) + part(jpegs[1]) + part(jpegs[2])[:5000])
        until(lambda: len(server.stand_in.calls) == 2)
        history = {"Authorization": f"Bearer {key}"}
        until(lambda: len(httpx.get(f"{server.url}/v1/predictions", headers=history).json()["items"]) == 2)
        assert not nothing_held(server)
    until(lambda: nothing_held(server))
    answer = httpx.post(f"{server.url}{PATH}", files=form(("a", jpegs[0]), ("b", jpegs[2])), headers=history)
    assert [item["status"] for item in answer.json()["items"]] == [200, 201]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "multipart/form-data"}, b"--edge--\r\n"),
        ({"Content-Type": "multipart/form-data; boundary=" + "x" * 300}, b"--edge--\r\n"),
        (EDGE, b""),
        (EDGE, b"no boundary at all"),
        (EDGE, b"x" * 100_000),
        (EDGE, part(b"x")),
        (EDGE, part(b"x") + b"--edg"),
        (EDGE, part(b"x") + b"--edge-"),
        (EDGE, part(b"x") + b"--edgeless\r\n\r\ny\r\n--edge--\r\n"),
        (EDGE, b"--edge\r\nno colon\r\n\r\nx\r\n--edge--\r\n"),
        (EDGE, b"--edge\r\n" + b"A: " + b"x" * 20_000 + b"\r\n\r\nx\r\n--edge--\r\n"),
        (EDGE, part(b"x") + b"--edge--\r\n" + bytes(100_000)),
        ({"Content-Type": "application/zip"}, b""),
        ({"Content-Type": "application/zip"}, b"PK"),
        ({"Content-Type": "application/zip"}, sample.jpeg(0)),
    ],
)
def test_malformed_bodies(api: httpx.Client, server: Server, headers: dict[str, str], body: bytes) -> None:
    assert_problem(api.post(PATH, content=body, headers=headers), 400, "request_malformed")
    assert nothing_held(server)


def test_wrong_type_no_image_and_nobody(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    assert_problem(api.post(PATH, content=jpegs[0], headers=JPEG), 415, "unsupported_media_type")
    assert_problem(api.post(PATH, content=b"--edge--\r\n", headers=EDGE), 422, "image_empty")
    assert_problem(httpx.post(server.url + PATH, files=form(("a.jpg", jpegs[0]))), 401, "unauthenticated")
    reader = {"Authorization": f"Bearer {new_key(server.settings)}"}
    execute(server, "UPDATE api_keys SET scopes = '{read}' WHERE created_at = (SELECT max(created_at) FROM api_keys)")
    assert_problem(httpx.post(server.url + PATH, files=form(("a.jpg", jpegs[0])), headers=reader), 403, "forbidden")


def test_too_many_images(api: httpx.Client, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_IMAGES", 3)
    monkeypatch.setattr(batch, "_OTHER_PARTS_MAX", 5)
    files = [(f"{number}.jpg", data) for number, data in enumerate(jpegs)]
    assert len(send(api, *files[:3])) == 3
    assert_problem(api.post(PATH, files=form(*files)), 413, "batch_too_large")
    fields = [("field", (None, b"x"))] * 6
    assert_problem(api.post(PATH, files=[*fields, *form(*files[:1])]), 413, "batch_too_large")


@pytest.mark.parametrize("announced", [True, False])
def test_too_large_in_all(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(stream.Body.__init__, "__kwdefaults__", {"limit": 100_000})
    body = b"".join(part(data) for data in different(20)) + b"--edge--\r\n"
    content: bytes | Iterator[bytes] = body if announced else iter([body[:90_000], body[90_000:]])
    assert_problem(api.post(PATH, content=content, headers=EDGE), 413, "batch_too_large")
    until(lambda: nothing_held(server))


def test_slow_sender(server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_SLOW_S", 0.5)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {EDGE['Content-Type']}\r\nContent-Length: 1000000\r\n"
        f"Authorization: Bearer {new_key(server.settings)}\r\n\r\n"
    )
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10) as connection:
        connection.sendall(head.encode() + part(b"x")[:20])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    until(lambda: nothing_held(server))


def test_a_batch_waits_for_room_instead_of_being_refused(
    api: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory stays within its bound all the while: many times what the server may hold passes through it."""
    bodies = different(60)
    intake, most = server.services().intake, 0
    monkeypatch.setattr(intake, "_max_bytes", 4 * len(bodies[0]))
    monkeypatch.setattr(intake, "_max_requests", 8)
    take = intake.take

    def watched(*arguments: Any, **options: Any) -> bool:
        nonlocal most
        taken = take(*arguments, **options)
        most = max(most, intake._bytes)
        return taken

    monkeypatch.setattr(intake, "take", watched)
    server.stand_in.delay_s = 0.02
    items = send(api, *((f"{number}.jpg", data) for number, data in enumerate(bodies)))
    assert Counter(item["status"] for item in items) == {201: 60}
    assert 2 * len(bodies[0]) < most <= 4 * len(bodies[0])
    assert nothing_held(server)


def test_half_arrived_images_of_several_batches_do_not_wait_for_each_other(
    server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four senders stop in the middle of an image, which together take all there is; then they go on."""
    intake = server.services().intake
    data = sample.jpeg(0) + bytes(120_000)
    monkeypatch.setattr(image, "MAX_BYTES", len(data) + 2)
    monkeypatch.setattr(intake, "_max_bytes", 4 * image.MAX_BYTES)
    monkeypatch.setattr(intake, "_max_requests", 64)
    start, wait = threading.Barrier(4), 0.3

    def run(number: int) -> httpx.Response:
        def content() -> Iterator[bytes]:
            body = part(data + bytes([number])) + part(data + bytes([number, 1])) + b"--edge--\r\n"
            yield body[: len(data) * 3 // 4]  # of which machines may hold four: no more has room
            start.wait()
            time.sleep(wait)
            yield body[len(data) * 3 // 4 :]

        headers = EDGE | {"Authorization": f"Bearer {new_key(server.settings)}"}
        return httpx.post(server.url + PATH, content=content(), headers=headers, timeout=20)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(run, range(4)))
    assert [[item["status"] for item in answer.json()["items"]] for answer in answers] == [[201, 201]] * 4
    assert nothing_held(server)


def test_one_key_does_not_starve_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of one key fill the server; another key's images get in at once and take their turn."""
    intake = server.services().intake
    monkeypatch.setattr(intake, "_max_requests", 32)
    server.stand_in.delay_s = 0.05
    greedy, other = new_key(server.settings), new_key(server.settings)
    bodies = different(320)

    def run(key: str, some: Sequence[bytes]) -> float:
        started = time.monotonic()
        files = form(*((f"{number}.jpg", data) for number, data in enumerate(some)))
        answer = httpx.post(server.url + PATH, files=files, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert {item["status"] for item in answer.json()["items"]} == {201}
        return time.monotonic() - started

    def single(key: str, data: bytes) -> int:
        headers = JPEG | {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{server.url}/v1/predictions", content=data, headers=headers, timeout=30).status_code

    with ThreadPoolExecutor(4) as pool:
        long = [pool.submit(run, greedy, bodies[at : at + 100]) for at in (0, 100, 200)]
        until(lambda: intake._requests >= 20)
        assert intake._requests == 21, "seven eighths of the 24 that machines may have"
        assert single(greedy, bodies[310]) == 503
        assert single(other, bodies[311]) == 201
        short = run(other, bodies[300:310])
        assert not any(one.done() for one in long)
        assert short < min(one.result() for one in long) / 2
    until(lambda: nothing_held(server))


def test_too_many_batches_at_once(api: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.services().intake, "_max_requests", 0)
    response = api.post(PATH, files=form(("a.jpg", sample.jpeg(0))))
    assert_problem(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) > 0


def test_overload_refuses_single_images_and_what_is_answered_201_is_stored(api: httpx.Client, server: Server) -> None:
    """Triton's queue is full for two images in three: these have 503 with a hint, and a second attempt completes all."""
    infer, calls = server.stand_in.infer, 0

    async def often_full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise Overloaded(retry_after=2)
        return await infer(*arguments, **options)

    server.stand_in.infer = often_full  # type: ignore[method-assign]
    try:
        files = [(f"{number}.jpg", data) for number, data in enumerate(different(90))]
        items = send(api, *files)
        assert Counter(item["status"] for item in items) == {201: 30, 503: 60}
        refused = [item for item in items if item["status"] == 503]
        assert {(item["problem"]["code"], item["retry_after"]) for item in refused} == {("overloaded", 2)}
    finally:
        server.stand_in.infer = infer  # type: ignore[method-assign]

    def stored() -> set[str]:
        page = api.get("/v1/predictions", params={"limit": 200}).json()["items"]
        return {one["id"] for one in page}

    assert stored() == {item["result"]["id"] for item in items if item["status"] == 201}
    again = send(api, *files)
    assert Counter(item["status"] for item in again) == {200: 30, 201: 60}
    assert len(stored()) == 90


def test_quota(start: Callable[..., Server]) -> None:
    server = start(rate_limit=60)
    headers = {"Authorization": f"Bearer {new_key(server.settings)}"}
    files = form(*((f"{number}.jpg", data) for number, data in enumerate(different(80))))
    items = httpx.post(server.url + PATH, files=files, headers=headers, timeout=30).json()["items"]
    assert Counter(item["status"] for item in items) == {201: 60, 429: 20}
    assert all(0 < item["retry_after"] <= 60 for item in items if item["status"] == 429)


def test_images_of_a_batch_share_transactions(api: httpx.Client, server: Server) -> None:
    items = send(api, *((f"{number}.jpg", data) for number, data in enumerate(different(100))))
    ids = [item["result"]["id"] for item in items]
    rows = execute(server, "SELECT DISTINCT xmin::text FROM predictions WHERE id = ANY($1::uuid[])", ids)
    assert len(rows) < 50


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_archive_is_a_batch(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    body = zipped(("folder/a.jpg", jpegs[0]), ("b.txt", b"text"), ("c.jpg", jpegs[1]))
    answer = api.post(PATH, content=body, headers={"Content-Type": "application/zip"})
    items = answer.json()["items"]
    assert [(item["index"], item["filename"], item["status"]) for item in items] == [
        (0, "a.jpg", 201),
        (1, "b.txt", 415),
        (2, "c.jpg", 201),
    ]
    assert json.dumps(items[0]["result"]["image"]["sha256"])
    assert nothing_held(server)


def test_no_more_is_under_way_than_a_slow_model_server_does_in_time(
    api: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its deadline would refuse what a little patience completes."""
    intake = server.services().intake
    monkeypatch.setattr(intake, "_backlog", Backlog())
    monkeypatch.setattr(intake_module, "_AHEAD_S", 0.1)
    under_way, most = 0, 0
    infer, one_at_a_time = server.stand_in.infer, asyncio.Lock()

    async def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        async with one_at_a_time:
            await asyncio.sleep(0.005)
            outputs = await infer(*arguments, **options)
        under_way -= 1
        return outputs

    monkeypatch.setattr(server.stand_in, "infer", slow)
    send(api, *((f"{number}.jpg", data) for number, data in enumerate(different(70))))
    most = 0
    send(api, *((f"{number}.jpg", data + b"again") for number, data in enumerate(different(100))))
    assert 8 <= most <= 24


def test_quota_that_is_used_up_costs_no_questions(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(rate_limit=60)
    headers = {"Authorization": f"Bearer {new_key(server.settings)}"}
    asked, hit = 0, server.services().throttle._limiter.hit

    async def counted(*arguments: Any, **options: Any) -> bool:
        nonlocal asked
        asked += 1
        return await hit(*arguments, **options)

    monkeypatch.setattr(server.services().throttle._limiter, "hit", counted)
    files = form(*((f"{number}.jpg", data) for number, data in enumerate(different(200))))
    items = httpx.post(server.url + PATH, files=files, headers=headers, timeout=30).json()["items"]
    assert Counter(item["status"] for item in items) == {201: 60, 429: 140}
    assert asked == 61
