"""Mutated bodies through the batch door and STOW-RS: documented answers only, no hang, nothing held, memory within bounds.

`DERMSERVE_MUTATIONS=10000` makes it that many of each kind; the seed is fixed, so that a number names a case.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from dermserve import image
from dermserve.errors import BY_CODE
from frontend.intake import Intake
from tests.frontend.conftest import Server, new_key
from tests.frontend.node import photograph
from tests.frontend.test_batch_zip import zipped

MUTATIONS: Final = int(os.environ.get("DERMSERVE_MUTATIONS", "150"))
SEED: Final = 20261123
LONGEST_S: Final = 10.0
WHOLE: Final = {400, 408, 413, 415, 422}
EACH: Final = {200, 201, 409, 413, 415, 422}
STOW: Final = {200, 202, 400, 409, 413, 415}
TOKENS: Final = [
    *(b"\r\n--edge\r\n", b"\r\n--edge--", b"\r\n--edge", b"--edge--\r\n", b"\r\n\r\n", b"\r\n", b"--", b"\n", b":"),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"\x01\x00\x10\x00"),
    *(b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x00" * 70_000, b"\xff\xd8\xff", b"DICM"),
    *(b'; filename="', b'name="file"', b"Content-Disposition: ", b"Content-Length: 5\r\n", b"Idempotency-Key: x\r\n"),
]


def tiny(seed: int) -> bytes:
    """An image of a kilobyte."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if seed % 3 == 0 else "JPEG")
    return buffer.getvalue()


IMAGES: Final = [tiny(seed) for seed in range(6)]


def parts(*, related: bool = False) -> bytes:
    if related:
        pixels = np.full((48, 64, 3), 90, np.uint8)
        files = [photograph(pixels + seed, *([JPEGBaseline8Bit] if seed % 2 else [])) for seed in range(3)]
        heads = [b"Content-Type: application/dicom"] * 3
    else:
        files = IMAGES
        heads = [b'Content-Disposition: form-data; name="file"; filename="%d.jpg"' % seed for seed in range(6)]
    both = zip(heads, files, strict=True)
    return b"".join(b"--edge\r\n%s\r\n\r\n%s\r\n" % one for one in both) + b"--edge--\r\n"


def archives() -> list[bytes]:
    files = [(f"{seed}.jpg", data) for seed, data in enumerate(IMAGES)]
    ways = [(0, False, False), (8, False, False), (0, True, False), (8, True, False), (8, True, True), (0, False, True)]
    return [zipped(*files, method=method, pipe=pipe, wide=wide) for method, pipe, wide in ways]


def flip(body: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 3, 20])):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def cut(body: bytearray, rng: random.Random) -> None:
    del body[rng.randrange(len(body)) :]


def remove(body: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(body))
    del body[start : start + rng.choice([1, 4, 50, 2000])]


def double(body: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(body))
    piece = body[start : start + rng.choice([1, 30, 1500, 10_000])]
    at = rng.randrange(len(body))
    body[at:at] = piece


def insert(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body))
    body[at:at] = rng.choice(TOKENS)


def lie(body: bytearray, rng: random.Random) -> None:
    """Change a number in one of the structures that an archive or a DICOM object is made of."""
    marks = [
        place for token in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x07\x08") for place in _all(body, token)
    ]
    place = rng.choice(marks) + rng.randrange(4, 46) if marks else rng.randrange(len(body))
    value = rng.choice([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)])
    if place + 4 <= len(body):
        struct.pack_into("<I", body, place, value)


def _all(body: bytearray, token: bytes) -> Iterator[int]:
    place = body.find(token)
    while place >= 0:
        yield place
        place = body.find(token, place + 1)


CHANGES: Final[list[Callable[[bytearray, random.Random], None]]] = [flip, cut, remove, double, insert, lie]


def mutated(bases: list[bytes], number: int) -> bytes:
    rng = random.Random(SEED + number)
    body = bytearray(rng.choice(bases))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if body:
            rng.choice(CHANGES)(body, rng)
    return bytes(body)


@pytest.fixture
def held(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The most bytes that the intake held, and that the process had grown by."""
    intake, process = server.services().intake, psutil.Process()
    most, resident = [0, 0], process.memory_info().rss
    take = Intake.take

    def watched(self: Intake, *arguments: Any, **options: Any) -> bool:
        taken = take(self, *arguments, **options)
        most[0] = max(most[0], self._bytes)
        most[1] = max(most[1], process.memory_info().rss - resident)
        return taken

    monkeypatch.setattr(Intake, "take", watched)
    yield most
    deadline = time.monotonic() + 10
    while (intake._bytes, intake._requests, intake._batches, intake._holders) != (0, 0, 0, {}):
        assert time.monotonic() < deadline, "something is still held"
        time.sleep(0.02)


def run(server: Server, path: str, kind: str, bases: list[bytes]) -> list[httpx.Response]:
    headers = {"Authorization": f"Bearer {new_key(server.settings)}", "Content-Type": kind}

    def one(number: int) -> httpx.Response:
        started = time.monotonic()
        response = client.post(path, content=mutated(bases, number), headers=headers)
        assert time.monotonic() - started < LONGEST_S, f"mutation {number} hangs"
        return response

    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(MUTATIONS)))


def check_batch(answers: list[httpx.Response]) -> Counter[int]:
    seen: Counter[int] = Counter()
    for number, answer in enumerate(answers):
        seen[answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.status_code in WHOLE, (number, answer.text)
            assert answer.json()["code"] in BY_CODE
            continue
        items = answer.json()["items"]
        assert [item["index"] for item in items] == list(range(len(items)))
        for item in items:
            assert item["status"] in EACH, (number, item)
            assert ("result" in item) == (item["status"] < 300)
    return seen


def test_archives(server: Server, held: list[int]) -> None:
    """What is accepted out of a changed archive is an image as it was put in: checksums see to that."""
    answers = run(server, "/v1/predictions/batch", "application/zip", archives())
    seen = check_batch(answers)
    assert seen[400] > MUTATIONS // 4
    assert seen[200] > MUTATIONS // 20
    put_in = {hashlib.sha256(data).hexdigest() for data in IMAGES}
    for answer in answers:
        for item in answer.json().get("items", []):
            assert item["status"] >= 300 or item["result"]["image"]["sha256"] in put_in
    assert held[0] <= image.MAX_BYTES
    assert held[1] < 150_000_000


def test_forms(server: Server, held: list[int]) -> None:
    seen = check_batch(run(server, "/v1/predictions/batch", "multipart/form-data; boundary=edge", [parts()]))
    assert seen[400] > MUTATIONS // 10
    assert seen[200] > MUTATIONS // 4
    assert held[0] <= image.MAX_BYTES
    assert held[1] < 150_000_000


def test_dicom_objects(server: Server, held: list[int]) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=edge'
    answers = run(server, "/dicomweb/studies", kind, [parts(related=True)])
    seen = Counter(answer.status_code for answer in answers)
    assert set(seen) <= STOW, seen
    assert seen[200] + seen[202] > MUTATIONS // 4
    for answer in answers:
        for sequence in ("00081198", "0008119A"):
            for failed in answer.json().get(sequence, {}).get("Value", []):
                [reason] = failed["00081197"]["Value"]
                assert reason in {0x0111, 0x0122, 0xA900} or reason & 0xF000 == 0xC000, hex(reason)
    assert held[0] <= image.MAX_BYTES
    assert held[1] < 150_000_000
