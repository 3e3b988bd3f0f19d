"""Bodies off the wire: bounded in memory and time."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dermserve import sample
from frontend import upload
from frontend.upload import Upload
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, new_key

JPEG = {"Content-Type": "image/jpeg"}


FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def dicom() -> bytes:
    """A small uncompressed dermoscopic photograph."""
    pixels = np.ascontiguousarray(sample.draw(1)[::2, ::2])
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("content_type", ["application/dicom", "application/octet-stream"])
def test_dicom(api: httpx.Client, content_type: str) -> None:
    response = api.post("/v1/predictions", content=dicom(), headers={"Content-Type": content_type})
    assert response.status_code == 201, response.text
    image = response.json()["image"]
    assert (image["format"], image["width"], image["height"]) == ("dicom", 300, 225)


def test_too_many_bytes_at_once_are_refused_and_room_comes_back(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = server.services().intake
    monkeypatch.setattr(intake, "_max_bytes", 2 * max(map(len, jpegs)))
    server.stand_in.delay_s = 0.5
    barrier = threading.Barrier(4)

    def send(data: bytes) -> httpx.Response:
        barrier.wait()
        return httpx.post(f"{server.url}/v1/predictions", content=data, headers=JPEG | dict(api.headers), timeout=30)

    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(send, jpegs))
    refused = [response for response in responses if response.status_code == 503]
    assert 0 < len(refused) < 4
    assert {response.json()["code"] for response in refused} == {"overloaded"}
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert api.post("/v1/predictions", content=jpegs[0], headers=JPEG).status_code in (200, 201)
    assert (intake._bytes, intake._requests) == (0, 0)


def test_too_many_requests_at_once(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services().intake, "_max_requests", 0)
    response = api.post("/v1/predictions", content=jpegs[0], headers=JPEG)
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert api.get("/v1/predictions").status_code == 200
    figures = httpx.get(f"{server.url}/metrics").text
    assert 'dermserve_http_request_seconds_count{method="POST",route="/v1/predictions",status="503"}' in figures
    assert 'dermserve_refused_total{code="overloaded"}' in figures


@pytest.mark.parametrize("bound", ["requests", "bytes"])
def test_people_get_in_while_machines_fill_their_share(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    person = Browser(server.url)
    person.register()
    intake = server.services().intake
    if bound == "requests":
        monkeypatch.setattr(intake, "_max_requests", 4)
    else:
        monkeypatch.setattr(intake, "_max_bytes", sum(map(len, jpegs[:3])) * 4 // 3 + 1)
    server.stand_in.delay_s = 2

    def send(data: bytes) -> httpx.Response:
        return api.post("/v1/predictions", content=data, headers=JPEG)

    with ThreadPoolExecutor(3) as pool:
        machines = [pool.submit(send, data) for data in jpegs[:3]]
        until(lambda: len(server.stand_in.calls) == 3)
        refused = send(jpegs[3])
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert person.upload(min(jpegs, key=len)).status_code == 201
    assert [machine.result().status_code for machine in machines] == [201] * 3
    assert (intake._bytes, intake._requests) == (0, 0)


def test_form_counts_twice_until_it_is_taken_apart(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = server.services().intake
    form = {"file": ("mole.jpg", jpegs[0], "image/jpeg")}
    with monkeypatch.context() as patch:
        patch.setattr(intake, "_max_bytes", 2 * len(jpegs[0]))  # of which a machine may fill 1.5
        assert api.post("/v1/predictions", files=form).status_code == 503
        assert api.post("/v1/predictions", content=jpegs[0], headers=JPEG).status_code == 201
    server.stand_in.delay_s = 1
    form["file"] = ("mole.jpg", jpegs[1], "image/jpeg")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.post, "/v1/predictions", files=form)
        until(lambda: len(server.stand_in.calls) == 2)
        assert intake._bytes == len(jpegs[1])
    assert answer.result().status_code == 201
    assert (intake._bytes, intake._requests) == (0, 0)


@pytest.mark.parametrize("filling", [b"\r\n--edge\r\n\r\n", b"\r\n--edge?"], ids=["parts", "near boundaries"])
def test_many_tiny_parts_are_refused_at_once(api: httpx.Client, jpegs: list[bytes], filling: bytes) -> None:
    file = b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + jpegs[0]
    body = file + filling * (8 * 1024 * 1024 // len(filling)) + b"\r\n--edge--\r\n"
    start = time.monotonic()
    response = api.post("/v1/predictions", content=body, headers=FORM)
    assert time.monotonic() - start < 1
    assert (response.status_code, response.json()["code"]) == (422, "request_invalid")
    assert "at most 20 parts" in response.json()["detail"]


def test_as_many_parts_as_allowed(api: httpx.Client, jpegs: list[bytes]) -> None:
    fields = [(f"field{n}", (None, b"x")) for n in range(19)]
    response = api.post("/v1/predictions", files=[*fields, ("file", ("mole.jpg", jpegs[0], "image/jpeg"))])
    assert response.status_code == 201, response.text


def test_overlong_boundary(api: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=" + "x" * 300}
    response = api.post("/v1/predictions", content=b"x", headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "request_invalid")


def test_others_are_served_while_a_form_is_taken_apart(
    api: httpx.Client, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, parsing, go_on = upload._parse_multipart, threading.Event(), threading.Event()

    def slow(content_type: str, body: bytes) -> Upload:
        parsing.set()
        go_on.wait(5)
        return parse(content_type, body)

    monkeypatch.setattr(upload, "_parse_multipart", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.post, "/v1/predictions", files={"file": ("mole.jpg", jpegs[0], "image/jpeg")})
        assert parsing.wait(5)
        assert httpx.get(f"{server.url}/healthz", timeout=2).status_code == 200
        go_on.set()
    assert answer.result().status_code == 201


def test_slow_sender(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_BODY_S", 0.5)
    head = (
        "POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n"
        f"Authorization: Bearer {new_key(server.settings)}\r\n\r\n"
    )
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10) as connection:
        connection.sendall(head.encode() + b"\xff\xd8\xff")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_sender_that_goes_away(server: Server, api: httpx.Client, jpegs: list[bytes]) -> None:
    key = api.headers["authorization"]
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpegs[0])}\r\n"
        f"Authorization: {key}\r\n\r\n"
    )
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10) as connection:
        connection.sendall(head.encode() + jpegs[0][:1000])
    deadline = time.monotonic() + 5
    while server.services().intake._requests and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.services().intake._requests == 0
    assert api.get("/v1/predictions").json()["items"] == []
    assert server.stand_in.calls == []
