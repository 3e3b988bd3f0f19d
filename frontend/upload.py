"""Image bytes off the wire and into memory, bounded in size, number and time, and never onto the disk.

Starlette's own form parser spools files over 1 MB to the disk; the server promises to keep no image, so nothing in
this room calls it.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from dermserve import image
from dermserve.errors import (
    ImageEmpty,
    ImageTooLarge,
    RequestInvalid,
    RequestTimeout,
    UnsupportedImageType,
)
from frontend.access import Caller
from frontend.context import Context
from frontend.intake import Claim, Intake

FILENAME_HEADER: Final = "x-filename"
CONTEXT_HEADERS: Final = {"lesion": "x-lesion", "body_site": "x-body-site", "note": "x-note"}
"""Percent-encoded UTF-8, like the file name's: in an address they would end up in the logs of proxies."""
RAW_TYPES: Final = ("image/jpeg", "image/png", "application/dicom")
_UNNAMED_TYPES: Final = ("", "application/octet-stream")  # the sender says nothing; the bytes will
_MULTIPART: Final = "multipart/form-data"
_MULTIPART_EXTRA: Final = 64 * 1024  # boundaries, part headers and small fields around the one image
_PARTS_MAX: Final = 20
_MULTIPART_COPIES: Final = 2  # the body, and the image cut out of it
_FIELD_MAX: Final = 4096  # bytes; what is longer is refused by its meaning
_FORM_MAX: Final = 64 * 1024
_BODY_S: Final = 120.0
_FILENAME_MAX: Final = 120


@dataclass(frozen=True)
class Upload:
    """One image as sent. `filename` is cleaned and only for people to recognise it by."""

    data: bytes
    filename: str | None
    context: Context = field(default_factory=Context)


@asynccontextmanager
async def receive(request: Request, intake: Intake, caller: Caller) -> AsyncIterator[Upload]:
    """Read the image of a request; its bytes count as held until the block is left.

    Raises:
        Overloaded: too much is held already, in all or by the caller's key.
        ImageTooLarge, ImageEmpty, UnsupportedImageType, RequestInvalid, RequestTimeout: the request is refused.
    """
    with intake.claim(caller) as claim:
        claim.enter()
        upload = await _read_image(request, claim)
        claim.reduce_to(len(upload.data))
        yield upload


async def _read_image(request: Request, held: Claim) -> Upload:
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == _MULTIPART:
        limit = image.MAX_BYTES + _MULTIPART_EXTRA
        body = _read(request, limit, held, copies=_MULTIPART_COPIES)
        upload = await asyncio.to_thread(_parse_multipart, content_type, await body)
    elif media_type in RAW_TYPES or media_type in _UNNAMED_TYPES:
        context = context_of(request.headers)
        data = await _read(request, image.MAX_BYTES, held)
        upload = Upload(data, filename_of(request.headers), context)
    else:
        raise UnsupportedImageType(
            f"A body of type {media_type[:80]!r} is not accepted; send {', '.join(RAW_TYPES)} or {_MULTIPART}."
        )
    if not upload.data:
        raise ImageEmpty
    return upload


def context_of(headers: Mapping[str, str]) -> Context:
    """What the headers of a request, or of a part of one, say about an image.

    Raises:
        RequestInvalid: what cannot be kept.
    """
    return _context({key: unquote(headers.get(sent, "")) for key, sent in CONTEXT_HEADERS.items()})


def filename_of(headers: Mapping[str, str]) -> str | None:
    """The file name that a header gives, cleaned."""
    return display_name(unquote(headers.get(FILENAME_HEADER, "")))


def _context(said: Mapping[str, str]) -> Context:
    return Context.of(*(said.get(key) for key in CONTEXT_HEADERS))


async def _read(request: Request, limit: int, held: Claim | None = None, copies: int = 1) -> bytes:
    """The whole body; checks the announced length first and counts what really comes, `copies` times as held.

    After a refusal uvicorn reads on and drops the rest, so that a sender in mid-body still sees the answer.
    """
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if held is not None:
                    held.add(copies * len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestTimeout(f"The body did not arrive within {_BODY_S:.0f} seconds.") from error
    except ClientDisconnect as error:
        raise RequestInvalid("The connection ended before the whole body had arrived.") from error
    return b"".join(chunks)


def _too_large(limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"The request is too large; at most {limit:,} bytes are accepted.")


class _Parts:
    """Collects the one file and the fields about it out of the parser's callbacks; every other part is skipped."""

    def __init__(self) -> None:
        self.file: bytes | None = None
        self.filename: str | None = None
        self.complete = False
        self._field = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._keep = False
        self._into: str | None = None
        self.fields: dict[str, bytes] = {}

    def on_part_begin(self) -> None:
        self._headers = {}
        self._keep, self._into = False, None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("ascii", "replace")
        if name in CONTEXT_HEADERS:
            self._into, self.fields[name] = name, b""
        if name != "file":
            return
        if self.file is not None:
            raise RequestInvalid("Send one image per request, in one part named 'file'.")
        self.file, self._keep = b"", True
        self.filename = display_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._keep and self.file is not None:
            self.file += data[start:end]
        elif self._into is not None and len(self.fields[self._into]) < _FIELD_MAX:
            self.fields[self._into] += data[start:end]

    def on_end(self) -> None:
        self.complete = True


def _parse_multipart(content_type: str, body: bytes) -> Upload:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    # The parser takes microseconds at every place that looks like a boundary, and a body has room for millions.
    if body.count(b"\r\n--" + boundary) > _PARTS_MAX:
        raise RequestInvalid(f"A multipart body may have at most {_PARTS_MAX} parts.")
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_part_data": parts.on_part_data,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_end": parts.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestInvalid("The multipart body is not valid.") from error
    if not parts.complete:
        raise RequestInvalid("The multipart body is not complete.")
    if parts.file is None:
        raise RequestInvalid("The multipart body has no part named 'file'.")
    said = {key: value.decode("utf-8", "replace") for key, value in parts.fields.items()}
    return Upload(parts.file, parts.filename, _context(said))


async def read_small(request: Request) -> bytes:
    """A body that is no image.

    Raises:
        ImageTooLarge: more than any of our forms can hold.
    """
    return await _read(request, _FORM_MAX)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form; where a name comes twice, the last one counts.

    Raises:
        RequestInvalid: another content type, or not UTF-8.
        ImageTooLarge: more than any of our forms can hold.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise RequestInvalid("A form was expected.")
    body = await read_small(request)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=50))
    except ValueError as error:
        raise RequestInvalid("The form is not valid.") from error


def display_name(raw: str) -> str | None:
    """A file name fit to be shown: no folders, no control or direction-changing characters, bounded; None if empty."""
    last = raw.replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in unicodedata.normalize("NFC", last) if not unicodedata.category(c).startswith("C"))
    return shown.strip()[:_FILENAME_MAX] or None
