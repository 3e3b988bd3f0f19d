"""A request's body as it comes: bounded in bytes and in time, and never held as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from dermserve.errors import BatchTooLarge, DermserveError, ImageTooLarge, RequestMalformed, RequestTimeout
from frontend.intake import Claim

MAX_TOTAL: Final = 2 * 1024 * 1024 * 1024
"""Bytes of one request with many images, as sent, and of what its archive expands to."""

_SLOW_S: Final = 120.0  # that a sender may take, and ...
_LEAST_RATE: Final = 16 * 1024  # ... bytes a second beyond it: an ISDN line's


class PartRefused(Exception):
    """One image of a body is refused; what comes behind it is not touched by that."""

    def __init__(self, error: DermserveError) -> None:
        super().__init__(error.detail)
        self.error = error


async def image_of(chunks: AsyncIterator[bytes], claim: Claim, *, limit: int) -> bytes:
    """The bytes of one part; waits for room rather than refuse them, and reads to their end.

    Raises:
        PartRefused: there are more than `limit`.
    """
    data, size = bytearray(), 0  # no list of chunks: a sender could make each a single byte
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            data.clear()
            claim.reduce_to(0)
            continue
        await claim.added(len(chunk))
        data += chunk
    if size > limit:
        raise PartRefused(ImageTooLarge(f"The part is {size:,} bytes; at most {limit:,} are accepted."))
    return bytes(data)


class Body:
    """What has come of a body and was not taken yet: `buffer`, some hundred kilobytes at most.

    Nothing is asked of the network while nobody reads, so that a sender who is faster than the server is held up by TCP.
    """

    def __init__(self, request: Request, *, limit: int = MAX_TOTAL) -> None:
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        self.buffer = bytearray()
        self._chunks = request.stream()
        self._limit = limit
        self._received = 0
        self._waited_s = 0.0

    @property
    def place(self) -> int:
        """How many bytes were taken."""
        return self._received - len(self.buffer)

    async def more(self) -> bool:
        """Wait for further bytes; False at the end.

        Raises:
            BatchTooLarge, RequestTimeout: it is too long or comes too slowly.
            RequestMalformed: the connection ended early.
        """
        started = time.monotonic()
        allowed = _SLOW_S + self._received / _LEAST_RATE - self._waited_s
        try:
            async with asyncio.timeout(allowed):
                chunk = await anext(self._chunks, None)
        except TimeoutError as error:
            raise RequestTimeout("The body comes too slowly.") from error
        except ClientDisconnect as error:
            raise RequestMalformed("The connection ended before the whole body had arrived.") from error
        self._waited_s += time.monotonic() - started
        if chunk is None:
            return False
        self._received += len(chunk)
        if self._received > self._limit:
            raise _too_large(self._limit)
        self.buffer += chunk
        return True

    async def holds(self, size: int) -> bool:
        """Wait until the buffer holds so many bytes; False if the body ends before."""
        while len(self.buffer) < size:
            if not await self.more():
                return False
        return True

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes; only for few.

        Raises:
            RequestMalformed: there are fewer.
        """
        if not await self.holds(size):
            raise RequestMalformed("The body is not complete.")
        return self.take(size)

    def take(self, size: int) -> bytes:
        """The first bytes of the buffer, `size` or as many as there are."""
        with memoryview(self.buffer)[:size] as first:
            taken = bytes(first)
        del self.buffer[:size]
        return taken

    def put_back(self, data: bytes) -> None:
        """Undo a `take`, or the last part of it."""
        self.buffer[:0] = data

    async def skip(self, size: int) -> None:
        """Pass over the next `size` bytes.

        Raises:
            RequestMalformed: there are fewer.
        """
        while size:
            if not await self.holds(1):
                raise RequestMalformed("The body is not complete.")
            size -= len(self.take(size))

    async def ended(self) -> bool:
        """Whether nothing more comes."""
        return not self.buffer and not await self.holds(1)


def _too_large(limit: int) -> BatchTooLarge:
    return BatchTooLarge(f"The request is too large; at most {limit:,} bytes are accepted.")
