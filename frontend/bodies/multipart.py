"""Parts of a multipart body (RFC 2046 §5.1) as they come, each read to its end before the next one begins.

python-multipart, which reads the forms with one image, calls back for every few bytes and has to be looked at byte by byte
where data resembles a boundary; here a part is cut out by one search.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

from python_multipart.multipart import parse_options_header

from dermserve.errors import RequestMalformed
from frontend.bodies.stream import Body

_BOUNDARY_MAX: Final = 200
_HEADERS_MAX: Final = 16 * 1024
_AROUND_MAX: Final = 64 * 1024  # before the first and behind the last boundary, where nothing is to be
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2


class Multipart:
    """The parts of a body: `next_part`, then `chunks`, until `next_part` returns None.

    Raises:
        RequestMalformed: the content type names no usable boundary.
    """

    def __init__(self, body: Body, boundary: bytes) -> None:
        if not 0 < len(boundary) <= _BOUNDARY_MAX:
            raise RequestMalformed("A multipart body needs a boundary of 1 to 200 characters.")
        self._body = body
        self._mark = b"\r\n--" + boundary
        self._in_part = False
        self._first = True
        self._last = False

    async def next_part(self) -> Mapping[str, str] | None:
        """The headers of the next part, names in lower case; None behind the last one. What is left of a part is skipped.

        Raises:
            RequestMalformed: the body is no whole multipart body.
        """
        if self._first:
            self._body.buffer[:0] = b"\r\n"  # the first boundary may stand at the very beginning
            self._first = False
            await self._skip(_AROUND_MAX)
        elif self._in_part:
            await self._skip(None)
        if self._last:
            await self._epilogue()
            return None
        self._in_part = True
        return await self._headers()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the part holds, up to its boundary.

        Raises:
            RequestMalformed: no boundary follows.
        """
        while self._in_part:
            found = self._body.buffer.find(self._mark)
            if found >= 0:
                if found:
                    yield self._body.take(found)
                del self._body.buffer[: len(self._mark)]
                await self._line_end()
                self._in_part = False
                return
            surely_data = len(self._body.buffer) - len(self._mark) + 1
            if surely_data > 0:
                yield self._body.take(surely_data)
            if not await self._body.more():
                raise RequestMalformed("The multipart body is not complete.")

    async def _skip(self, most: int | None) -> None:
        self._in_part = True
        skipped = 0
        async for chunk in self.chunks():
            skipped += len(chunk)
            if most is not None and skipped > most:
                raise RequestMalformed("The multipart body does not begin with its boundary.")

    async def _line_end(self) -> None:
        """What stands behind a boundary: two hyphens at the end, else padding and the end of the line."""
        if not await self._body.holds(2):
            raise RequestMalformed("The multipart body is not complete.")
        if self._body.buffer.startswith(b"--"):
            self._last = True
            return
        line = await self._until(b"\r\n", 256)
        if line.strip(b" \t"):
            # RFC 2046 §5.1.1: the boundary must not occur in the parts; whoever lets it, would have an image cut short.
            raise RequestMalformed("The multipart body's boundary occurs within a part.")

    async def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        name, left = "", _HEADERS_MAX
        while line := (await self._until(b"\r\n", left)).decode("latin-1"):
            left -= len(line) + 2
            if line[0] in " \t" and name:  # a long header, folded as in mail
                headers[name.lower()] += " " + line.strip(" \t")
                continue
            name, colon, value = line.partition(":")
            if not colon or not _NAME.fullmatch(name):
                raise RequestMalformed("A part's headers are not valid.")
            headers[name.lower()] = value.strip(" \t")
        return headers

    async def _until(self, mark: bytes, most: int) -> bytes:
        buffer = self._body.buffer
        while (found := buffer.find(mark, 0, most + len(mark))) < 0:
            if len(buffer) > most or not await self._body.more():
                raise RequestMalformed("A part's headers are too long, or the multipart body is not complete.")
        taken = self._body.take(found + len(mark))
        return taken[:found]

    async def _epilogue(self) -> None:
        while await self._body.holds(1):
            if len(self._body.buffer) > _AROUND_MAX or not await self._body.more():
                break
        if len(self._body.buffer) > _AROUND_MAX:
            raise RequestMalformed("The multipart body goes on behind its last boundary.")
        self._body.buffer.clear()


def parameters(header: str) -> tuple[str, Mapping[str, str]]:
    """A header's value in lower case and its parameters (RFC 2045 §5.1), quotes taken off; UTF-8 as browsers send it."""
    value, options = parse_options_header(header.encode("latin-1", "replace").decode("latin-1"))
    return value.decode("latin-1"), {
        name.decode("latin-1").lower(): one.decode("utf-8", "replace") for name, one in options.items()
    }
