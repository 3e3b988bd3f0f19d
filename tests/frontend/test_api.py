"""The HTTP contract of `/v1/predictions`, point by point."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from uuid import UUID, uuid4

import httpx
import pytest
from PIL import Image

from dermserve import image
from dermserve.errors import ImageUndecodable, Overloaded
from dermserve.labels import LEAVES
from dermserve.model_card import Measured
from tests.frontend.conftest import Server, make_card, new_key

JPEG = {"Content-Type": "image/jpeg"}


def post(api: httpx.Client, data: bytes, headers: dict[str, str] | None = None, **query: str) -> httpx.Response:
    return api.post("/v1/predictions", content=data, headers=JPEG | (headers or {}), params=query)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert all((body["title"], body["detail"], body["type"]))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1024))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_result_body(api: httpx.Client, jpegs: list[bytes]) -> None:
    response = post(api, jpegs[0])
    assert response.status_code == 201
    body = response.json()
    assert set(body) == {
        *("id", "created_at", "image", "probabilities", "diagnoses", "decision", "quality", "model"),
    }
    assert response.headers["location"] == f"/v1/predictions/{UUID(body['id'])}"
    assert body["created_at"].endswith("Z")
    assert set(body["image"]) == {"sha256", "width", "height", "format"}
    assert (body["image"]["width"], body["image"]["height"], body["image"]["format"]) == (600, 450, "jpeg")
    probabilities = body["probabilities"]
    assert list(probabilities) == ["benign", "suspicious", "malignant", "melanoma"]
    assert probabilities["benign"] + probabilities["suspicious"] + probabilities["malignant"] == pytest.approx(
        1, abs=1e-5
    )
    assert list(body["diagnoses"]) == list(LEAVES)
    assert sum(body["diagnoses"].values()) == pytest.approx(1, abs=1e-5)
    assert body["decision"] == {
        "operating_point": "sensitivity_95",
        "threshold": 0.12,
        "refer": probabilities["melanoma"] >= 0.12,
    }
    assert body["quality"] == {"flags": [], "abstained": False}
    assert body["model"] == {
        "name": "melanoma",
        "version": "1.2.3",
        "precision": "fp32",
        "runtime": "stand-in",
        "preprocessing": "0" * 64,
    }


def test_cam_only_when_asked_for(api: httpx.Client, jpegs: list[bytes]) -> None:
    body = post(api, jpegs[0], cam="true").json()
    assert body["cam"]["shape"] == [10, 10]
    assert [len(line) for line in body["cam"]["values"]] == [10] * 10
    assert body["cam"]["region"] == [0, 0, 1, 1]
    url = f"/v1/predictions/{body['id']}"
    assert "cam" not in api.get(url).json()
    assert api.get(url, params={"cam": "true"}).json() == body


def test_repeat_returns_the_same_result_without_inference(
    api: httpx.Client, server: Server, jpegs: list[bytes]
) -> None:
    first = post(api, jpegs[0])
    again = post(api, jpegs[0])
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert len(server.stand_in.calls) == 1


def test_key_belongs_to_its_bytes(api: httpx.Client, jpegs: list[bytes]) -> None:
    key = {"Idempotency-Key": "case 17/a"}
    assert post(api, jpegs[0], key).status_code == 201
    assert post(api, jpegs[0], key).status_code == 200
    assert_problem(post(api, jpegs[1], key), 409, "idempotency_conflict")
    assert post(api, jpegs[1]).status_code == 201


def test_keys_of_two_owners_are_apart(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    key = {"Idempotency-Key": "shared"}
    assert post(api, jpegs[0], key).status_code == 201
    other = {"Authorization": f"Bearer {new_key(server.settings)}"}
    assert post(api, jpegs[1], key | other).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_unusable_key(api: httpx.Client, jpegs: list[bytes], key: str) -> None:
    assert_problem(post(api, jpegs[0], {"Idempotency-Key": key}), 422, "request_invalid")


def test_identical_posts_at_once_make_one_row(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    server.stand_in.delay_s = 0.2
    barrier = threading.Barrier(8)

    def send(_: int) -> httpx.Response:
        barrier.wait()
        return httpx.post(
            f"{server.url}/v1/predictions", content=jpegs[0], headers=JPEG | dict(api.headers), timeout=30
        )

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(send, range(8)))
    assert sorted(response.status_code for response in responses) == [200] * 7 + [201]
    assert len({response.json()["id"] for response in responses}) == 1
    assert len(api.get("/v1/predictions").json()["items"]) == 1


def test_conflicting_posts_at_once(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    server.stand_in.delay_s = 0.2
    headers = JPEG | dict(api.headers) | {"Idempotency-Key": "race"}
    with ThreadPoolExecutor(4) as pool:
        responses = list(
            pool.map(
                lambda data: httpx.post(f"{server.url}/v1/predictions", content=data, headers=headers, timeout=30),
                jpegs,
            )
        )
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "image/png", "IMAGE/JPEG; q=1"])
def test_bytes_decide_the_kind(api: httpx.Client, jpegs: list[bytes], content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = api.post("/v1/predictions", content=jpegs[0], headers=headers)
    assert response.status_code == 201
    assert response.json()["image"]["format"] == "jpeg"


def test_png(api: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "brown").save(buffer, "PNG")
    response = post(api, buffer.getvalue())
    assert response.status_code == 201
    assert response.json()["image"] | {"sha256": ""} == {"sha256": "", "width": 64, "height": 48, "format": "png"}


def test_multipart(api: httpx.Client, jpegs: list[bytes]) -> None:
    files = {"note": (None, b"x" * 100), "file": ("C:\\scans\\mole 1.jpg", jpegs[0], "image/jpeg")}
    raw = post(api, jpegs[0])
    parts = api.post("/v1/predictions", files=files)
    assert (raw.status_code, parts.status_code) == (201, 200)
    assert raw.json()["id"] == parts.json()["id"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"image": ("a.jpg", b"x", "image/jpeg")}, "request_invalid"),
        ([("file", ("a.jpg", b"\xff\xd8\xff")), ("file", ("b.jpg", b"\xff\xd8\xff"))], "request_invalid"),
        ({"file": ("a.jpg", b"", "image/jpeg")}, "image_empty"),
    ],
)
def test_unusable_multipart(api: httpx.Client, files: object, code: str) -> None:
    assert_problem(api.post("/v1/predictions", files=files), 422, code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body", [b"", b"--b\r\nnonsense", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx']
)
def test_broken_multipart(api: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_problem(api.post("/v1/predictions", content=body, headers=headers), 422, "request_invalid")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("text", 415, "unsupported_media_type"),
        ("gif", 415, "unsupported_media_type"),
        ("empty", 422, "image_empty"),
        ("truncated", 422, "image_undecodable"),
        ("bomb", 413, "image_too_large"),
        ("tiny", 422, "image_too_small"),
    ],
)
def test_refused_images(api: httpx.Client, jpegs: list[bytes], name: str, status: int, code: str) -> None:
    bodies = {
        "text": b"Dear colleague, please find attached",
        "gif": b"GIF89a" + bytes(100),
        "empty": b"",
        "truncated": jpegs[0][: len(jpegs[0]) // 2],
        "bomb": png_header(40_000, 40_000),
        "tiny": png_header(8, 8),
    }
    assert_problem(post(api, bodies[name]), status, code)
    assert api.get("/v1/predictions").json()["items"] == []
    assert post(api, jpegs[0]).status_code == 201


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_refused_content_types(api: httpx.Client, jpegs: list[bytes], content_type: str) -> None:
    response = api.post("/v1/predictions", content=jpegs[0], headers={"Content-Type": content_type})
    assert_problem(response, 415, "unsupported_media_type")


def test_too_many_bytes(api: httpx.Client, server: Server) -> None:
    too_many = image.MAX_BYTES + 1
    assert_problem(post(api, bytes(too_many)), 413, "image_too_large")
    chunks = (bytes(1024 * 1024) for _ in range(40))  # no Content-Length: counted while it streams
    response = api.post("/v1/predictions", content=chunks, headers=JPEG)
    assert_problem(response, 413, "image_too_large")
    assert server.stand_in.calls == []


def test_sender_in_mid_body_sees_the_refusal(server: Server) -> None:
    """Even one that, like many, reads nothing before it has sent everything, and then goes on with the connection."""
    body = bytes(20_000_000)
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=30) as connection:
        for announced in (len(body), image.MAX_BYTES * 2):
            head = f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n"
            connection.sendall(head.encode() + body + bytes(announced - len(body)))
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


class Writes:
    """Every opening of a file for writing in this process, server thread included, while `on`."""

    on = False
    seen: ClassVar[list[object]] = []

    @classmethod
    def audit(cls, event: str, details: tuple[object, ...]) -> None:
        if cls.on and event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR):
            cls.seen.append(details[0])


def test_image_bytes_never_touch_the_disk(api: httpx.Client, jpegs: list[bytes]) -> None:
    sys.addaudithook(Writes.audit)  # for the rest of the process: hooks cannot be taken off
    padded = jpegs[0] + bytes(5_000_000)  # far more than frameworks keep in memory
    Writes.on = True
    with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
        spooled.write(bytes(11))  # shows that the hook would see a spooled upload
    shown = len(Writes.seen)
    assert shown > 0
    parts = api.post("/v1/predictions", files={"file": ("big.jpg", padded, "image/jpeg")})
    raw = post(api, padded)
    Writes.on = False
    assert (parts.status_code, raw.status_code) == (201, 200)
    assert len(Writes.seen) == shown


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer derm_wrong", "Basic dXNlcjpwYXNz", "Bearer \xff", "derm_x"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/predictions"), ("GET", "/v1/predictions"), ("GET", f"/v1/predictions/{uuid4()}")],
)
def test_unauthenticated(server: Server, method: str, path: str, authorization: str | None) -> None:
    headers = {"Authorization": authorization.encode("latin-1")} if authorization else {}
    response = httpx.request(method, server.url + path, headers=headers)
    assert_problem(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"


def test_owners_do_not_see_each_other(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    url = f"/v1/predictions/{post(api, jpegs[0]).json()['id']}"
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {new_key(server.settings)}"}) as stranger:
        assert_problem(stranger.get(url), 404, "not_found")
        assert_problem(stranger.delete(url), 404, "not_found")
        assert stranger.get("/v1/predictions").json() == {"items": [], "next_cursor": None}
        assert stranger.post("/v1/predictions", content=jpegs[0], headers=JPEG).status_code == 201
    assert api.get(url).status_code == 200


def test_delete_then_again(api: httpx.Client, jpegs: list[bytes]) -> None:
    first = post(api, jpegs[0]).json()["id"]
    deleted = api.delete(f"/v1/predictions/{first}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(api.get(f"/v1/predictions/{first}"), 404, "not_found")
    assert_problem(api.delete(f"/v1/predictions/{first}"), 404, "not_found")
    again = post(api, jpegs[0])
    assert again.status_code == 201
    assert again.json()["id"] != first


def test_paging_is_stable_under_inserts(api: httpx.Client, jpegs: list[bytes]) -> None:
    def send(number: int) -> str:
        return post(api, jpegs[number % 4], {"Idempotency-Key": f"n{number}"}).json()["id"]

    old = [send(number) for number in range(7)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for number in range(4):
        page = api.get("/v1/predictions", params={"limit": "2"} | cursor).json()
        seen += [item["id"] for item in page["items"]]
        send(100 + number)
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == old[::-1]
    assert page["next_cursor"] is None
    assert len(api.get("/v1/predictions").json()["items"]) == 11


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=%FF", "cursor=" + "A" * 32])
def test_unusable_paging(api: httpx.Client, query: str) -> None:
    response = api.get(f"/v1/predictions?{query}")
    if query.endswith("A" * 32):  # decodes, to a moment before every result
        assert response.json()["items"] == []
    else:
        assert_problem(response, 422, "request_invalid")


def test_model_server_away(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    server.stand_in.down = True
    response = post(api, jpegs[0])
    assert_problem(response, 503, "inference_unavailable")
    assert int(response.headers["retry-after"]) > 0
    server.stand_in.down = False
    assert post(api, jpegs[0]).status_code == 201


def test_queue_full_and_image_refused_by_the_model_server(
    api: httpx.Client, server: Server, jpegs: list[bytes]
) -> None:
    server.stand_in.failure = Overloaded(retry_after=3)
    response = post(api, jpegs[0])
    assert_problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "3"
    server.stand_in.failure = ImageUndecodable("The JPEG data is truncated or corrupt.")
    assert_problem(post(api, jpegs[0]), 422, "image_undecodable")


def test_machines_queue_behind_people(api: httpx.Client, server: Server, jpegs: list[bytes]) -> None:
    post(api, jpegs[0])
    assert server.stand_in.calls == [True]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/predictions/not-a-uuid", 404, "not_found"),
        ("PUT", "/v1/predictions", 405, "method_not_allowed"),
    ],
)
def test_framework_errors_are_problems(api: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    response = api.request(method, path)
    assert_problem(response, status, code)
    if status == 405:
        assert "POST" in response.headers["allow"]


def test_unhandled_error_tells_nothing(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ValueError("secret path /srv/x")

    monkeypatch.setattr("frontend.predictions._header_and_digest", explode)
    response = post(api, jpegs[0])
    assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_openapi_states_the_contract(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        *("/v1/predictions", "/v1/predictions/{prediction_id}", "/healthz", "/readyz", "/metrics"),
        *("/v1/predictions/batch", "/dicomweb/studies", "/dicomweb/studies/{study}"),
    }
    operation = document["paths"]["/v1/predictions"]["post"]
    expected = {"200", "201", "401", "403", "408", "409", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]) == expected
    assert set(operation["requestBody"]["content"]) >= {
        "image/jpeg",
        "image/png",
        "application/dicom",
        "multipart/form-data",
    }
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in str(document)


def test_measured_quality_flags_and_abstention(
    start: Callable[..., Server], tmp_path: Path, jpegs: list[bytes]
) -> None:
    make_card(
        tmp_path,
        quality=Measured(measured=True, thresholds={"marker_pen": 0.5, "blurry": 0.5}),
        ood=Measured(measured=True, thresholds={"ood": 5.0}),
    )
    server = start(model_repository=tmp_path)
    headers = JPEG | {"Authorization": f"Bearer {new_key(server.settings)}"}
    response = httpx.post(f"{server.url}/v1/predictions", content=jpegs[0], headers=headers)
    assert response.json()["quality"] == {"flags": ["marker_pen"], "abstained": True}
