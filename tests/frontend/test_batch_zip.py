"""ZIP archives as batches: every way of writing them that senders use, and nothing harmful in those that lie."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from dermserve import image, sample
from frontend.bodies import archive
from tests.frontend.conftest import Server

PATH: Final = "/v1/predictions/batch"
ZIP: Final = {"Content-Type": "application/zip"}
FIRST, SECOND = sample.jpeg(0), sample.jpeg(1)
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class Pipe(io.RawIOBase):
    """An output that cannot seek: sizes and checksums are written behind the entries."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def zipped(*files: tuple[str, bytes], method: int = DEFLATED, pipe: bool = False, wide: bool = False) -> bytes:
    target: Any = Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as writer:
        for name, data in files:
            with writer.open(name, "w", force_zip64=wide) as entry:
                entry.write(data)
    return bytes(target.data) if pipe else target.getvalue()


def patched(body: bytes, local: Callable[[bytearray, int], None], central: Callable[[bytearray, int], None]) -> bytes:
    """Change the first local and the first central header."""
    changed = bytearray(body)
    local(changed, changed.index(b"PK\x03\x04"))
    central(changed, changed.index(b"PK\x01\x02"))
    return bytes(changed)


def field(offset: int, form: str, value: int) -> Callable[[bytearray, int], None]:
    return lambda body, place: struct.pack_into(form, body, place + offset, value)


def untouched(body: bytearray, place: int) -> None:
    pass


def send(api: httpx.Client, body: bytes) -> httpx.Response:
    return api.post(PATH, content=body, headers=ZIP, timeout=30)


def outcomes(response: httpx.Response) -> list[tuple[str | None, int]]:
    assert response.status_code == 200, response.text
    return [(item["filename"], item["status"]) for item in response.json()["items"]]


def assert_malformed(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (400, "request_malformed"), response.text


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("wide", [False, True], ids=["32 bit", "64 bit"])
def test_ways_of_writing(api: httpx.Client, method: int, pipe: bool, wide: bool) -> None:
    body = zipped(("a.jpg", FIRST), ("empty.jpg", b""), ("b.jpg", SECOND), method=method, pipe=pipe, wide=wide)
    assert outcomes(send(api, body)) == [("a.jpg", 201), ("empty.jpg", 422), ("b.jpg", 201)]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pipe", [False, True])
def test_folders_names_and_duplicates(api: httpx.Client, pipe: bool) -> None:
    names = ["x/", "x/../../etc/passwd.jpg", "C:\\temp\\läsion.jpg", "same.jpg", "same.jpg", "y/z/"]
    target: Any = Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(target, "w") as writer:
        for name in names:
            writer.writestr(name, b"" if name.endswith("/") else FIRST)
        writer.comment = b"from the ward"
    answer = send(api, bytes(target.data) if pipe else target.getvalue())
    assert [name for name, _ in outcomes(answer)] == ["passwd.jpg", "läsion.jpg", "same.jpg", "same.jpg"]
    assert sorted(status for _, status in outcomes(answer)) == [200, 200, 200, 201]
    assert len(api.get("/v1/predictions").json()["items"]) == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_refused_alone(api: httpx.Client, method: int) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as writer:
        writer.writestr("a.jpg", FIRST, method)
        writer.writestr("b.jpg", SECOND)
    assert outcomes(send(api, target.getvalue())) == [("a.jpg", 415), ("b.jpg", 201)]


def test_encrypted_entries_are_refused_alone(api: httpx.Client) -> None:
    body = zipped(("a.jpg", FIRST), ("b.jpg", SECOND))
    answer = send(api, patched(body, field(6, "<H", 1), field(8, "<H", 1)))
    assert outcomes(answer) == [("a.jpg", 415), ("b.jpg", 201)]
    assert "encrypted" in answer.json()["items"][0]["problem"]["detail"]


def test_archives_in_archives_are_not_opened(api: httpx.Client) -> None:
    inner = zipped(("inner.jpg", FIRST), pipe=True, method=STORED)
    for pipe in (False, True):
        body = zipped(("inner.zip", inner), ("b.jpg", SECOND), method=STORED, pipe=pipe)
        assert outcomes(send(api, body))[0] == ("inner.zip", 415)
    assert len(api.get("/v1/predictions").json()["items"]) == 1


@pytest.mark.parametrize("pipe", [False, True], ids=["size before", "size behind"])
def test_bombs_expand_to_no_more_than_an_image_may_have(
    api: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch, pipe: bool
) -> None:
    """128 MiB of nothing in an eighth of a megabyte, between two images."""
    intake, most = server.services().intake, 0
    take = intake.take

    def watched(*arguments: Any, **options: Any) -> bool:
        nonlocal most
        taken = take(*arguments, **options)
        most = max(most, intake._bytes)
        return taken

    monkeypatch.setattr(intake, "take", watched)
    target: Any = Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(target, "w", DEFLATED) as writer:
        writer.writestr("a.jpg", FIRST)
        with writer.open("bomb.jpg", "w") as entry:
            for _ in range(128):
                entry.write(bytes(1024 * 1024))
        writer.writestr("b.jpg", SECOND)
    body = bytes(target.data) if pipe else target.getvalue()
    assert len(body) < 300_000
    assert outcomes(send(api, body)) == [("a.jpg", 201), ("bomb.jpg", 413), ("b.jpg", 201)]
    assert most <= image.MAX_BYTES + len(FIRST) + len(SECOND)
    assert intake._bytes == 0


def test_an_archive_may_not_expand_without_end(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    body = zipped(*((f"{number}.jpg", bytes(5_000_000)) for number in range(5)), pipe=True)
    assert [status for _, status in outcomes(send(api, body))] == [415] * 5
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_TOTAL", 20_000_000)
        answer = send(api, body)
        assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    monkeypatch.setattr(image, "MAX_BYTES", 1_000_000)
    assert [status for _, status in outcomes(send(api, body))] == [413] * 5
    monkeypatch.setattr(archive, "_SURPLUS_MAX", 15_000_000)
    answer = send(api, body)
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")


def test_too_many_entries(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_ENTRIES_MAX", 10)
    answer = send(api, zipped(*((f"{number}/", b"") for number in range(11))))
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")


def test_a_size_that_is_a_lie_everywhere(api: httpx.Client) -> None:
    """Smaller, larger, or enormous: the entry is refused, its neighbour is not."""
    body = zipped(("a.jpg", FIRST), ("b.jpg", SECOND))
    for size, status in ((10, 422), (len(FIRST) + 1, 422), (0xFFFFFFF0, 413)):
        answer = send(api, patched(body, field(22, "<I", size), field(24, "<I", size)))
        assert outcomes(answer)[0][1] == status
        assert outcomes(answer)[1][0] == "b.jpg"
        assert outcomes(answer)[1][1] in (200, 201)


def test_a_checksum_that_is_a_lie(api: httpx.Client) -> None:
    for method in (STORED, DEFLATED):
        body = zipped(("a.jpg", FIRST), method=method)
        assert outcomes(send(api, patched(body, field(14, "<I", 1), field(16, "<I", 1)))) == [("a.jpg", 422)]
    assert api.get("/v1/predictions").json()["items"] == []


def test_damaged_packed_data_is_refused_alone(api: httpx.Client) -> None:
    body = bytearray(zipped(("a.jpg", FIRST), ("b.jpg", SECOND)))
    body[100:200] = bytes(100)
    assert outcomes(send(api, bytes(body))) == [("a.jpg", 422), ("b.jpg", 201)]


@pytest.mark.parametrize(
    ("local", "central"),
    [
        (field(22, "<I", 10), untouched),  # size
        (field(14, "<I", 1), untouched),  # checksum
        (untouched, field(46, "<B", ord("z"))),  # name
        (untouched, field(42, "<I", 1)),  # place
        (untouched, field(20, "<I", 1)),  # packed size
        (untouched, field(10, "<H", 0)),  # method
        (field(6, "<H", 1), untouched),  # encrypted
        (field(18, "<I", 1), field(20, "<I", 1)),  # packed size: what follows is no entry
        (field(18, "<I", 0x7FFFFFFF), untouched),
        (field(26, "<H", 0xFFFF), untouched),  # length of the name
        (field(28, "<H", 0xFFFF), untouched),  # length of the extra field
    ],
)
def test_an_archive_that_contradicts_itself(
    api: httpx.Client, local: Callable[[bytearray, int], None], central: Callable[[bytearray, int], None]
) -> None:
    body = zipped(("a.jpg", FIRST), ("b.jpg", SECOND))
    assert_malformed(send(api, patched(body, local, central)))


def test_what_stands_around_an_archive_is_refused(api: httpx.Client) -> None:
    """A JPEG that is a ZIP archive, too, is one or the other, as its sender says; never both."""
    body = zipped(("a.jpg", FIRST))
    for odd in (SECOND + body, b"#!/bin/sh\n" + body, body + b"x", body + body, body[:-1], body[:-30], body[:200]):
        assert_malformed(send(api, odd))
    alone = api.post("/v1/predictions", content=SECOND + body, headers={"Content-Type": "image/jpeg"})
    assert alone.status_code in (201, 422)


def test_entries_that_the_directory_hides(api: httpx.Client) -> None:
    body = zipped(("a.jpg", FIRST))
    hidden = body[: body.index(b"PK\x01\x02")]
    whole = bytearray(hidden + body)
    end = whole.rindex(b"PK\x05\x06")
    struct.pack_into("<I", whole, end + 16, len(hidden) * 2)
    struct.pack_into("<I", whole, whole.index(b"PK\x01\x02") + 42, len(hidden))
    assert zipfile.ZipFile(io.BytesIO(whole)).testzip() is None, "others see one good entry"
    assert_malformed(send(api, bytes(whole)))
    struct.pack_into("<HH", whole, end + 8, 0xFFFF, 0xFFFF)  # "see the end with 64 bits"
    assert_malformed(send(api, bytes(whole)))


def test_a_description_within_the_data_does_not_end_it(api: httpx.Client) -> None:
    """Stored with its size behind it: only a description that tells the right size and checksum is the end."""
    false = b"PK\x07\x08" + struct.pack("<III", zlib.crc32(b"x"), 1, 1)
    body = zipped(("a.jpg", FIRST + false + b"PK\x07\x08" * 20), ("b.jpg", SECOND), method=STORED, pipe=True)
    items = send(api, body).json()["items"]
    assert [item["status"] for item in items] == [201, 201]
    assert len(FIRST + false) < len(body)


def test_many_false_descriptions_are_refused_soon(api: httpx.Client) -> None:
    assert_malformed(send(api, zipped(("a.jpg", b"PK\x07\x08" * 2_000_000), method=STORED, pipe=True)))


def test_an_entry_whose_end_nobody_knows(api: httpx.Client) -> None:
    for method in (99, 12):
        body = zipped(("a.jpg", FIRST), pipe=True)
        assert_malformed(send(api, patched(body, field(8, "<H", method), field(10, "<H", method))))


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP's zip is not installed")
def test_info_zip_from_files_and_through_a_pipe(api: httpx.Client, tmp_path: Path) -> None:
    """Encrypted entries are refused alone where their size is known."""
    for name, data in (("a.jpg", FIRST), ("b.jpg", SECOND), ("c.txt", b"text" * 1000)):
        (tmp_path / name).write_bytes(data)

    def run(*arguments: str) -> bytes:
        return subprocess.run(["zip", "-q", *arguments], cwd=tmp_path, check=True, capture_output=True).stdout

    expected = [("a.jpg", 201), ("b.jpg", 201), ("c.txt", 415)]
    for level in ("-9", "-0"):
        run(level, f"files{level}.zip", "a.jpg", "b.jpg", "c.txt")
        answers = [send(api, (tmp_path / f"files{level}.zip").read_bytes())]
        answers.append(send(api, run(level, "-", "a.jpg", "b.jpg", "c.txt")))
        for answer in answers:
            assert outcomes(answer) == expected
            expected = [("a.jpg", 200), ("b.jpg", 200), ("c.txt", 415)]
    run("-P", "secret", "sealed.zip", "a.jpg")
    run("-g", "sealed.zip", "b.jpg")
    assert outcomes(send(api, (tmp_path / "sealed.zip").read_bytes())) == [("a.jpg", 415), ("b.jpg", 200)]
    assert_malformed(send(api, run("-P", "secret", "-", "a.jpg", "b.jpg")))
