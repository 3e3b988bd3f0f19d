"""What uvicorn leaves open: how long and how large a request may be beside its body. Given to it with `--http`.

Its fast parser, httptools, bounds neither: a client that never ends its headers would fill the memory, and one that sends
a byte now and then would hold a connection for ever. Its slower one, h11, bounds the size only.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_S: Final = 20.0
"""For a request's line and headers, from the connection or their first byte on; and for the rest of a body that was refused."""
LARGEST: Final = 65_536
"""Bytes of a request's line and headers; of a body's framing in chunks, and what follows it, a quarter of the body more."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _At(Enum):
    HEADERS = auto()
    BODY = auto()
    END = auto()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, whose connections end when their client is too slow with what no route has a say in, or too long.

    How long a body may take is the routes' business, until they have answered.
    """

    _at = _At.HEADERS
    _received = 0  # bytes since the request began, some of the one before included
    _body = 0  # of those, what was body
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._at is _At.HEADERS or (self._at is _At.BODY and not self._answering):
            if self._deadline is None:
                self._wait()
        elif self._deadline is not None:
            self._wait_no_longer()
        if self._received > LARGEST + 1.25 * self._body and self._at is not _At.END:
            self._refuse()

    def on_message_begin(self) -> None:
        self._at, self._received, self._body = _At.HEADERS, 0, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._at = _At.BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._at = _At.END
        super().on_message_complete()

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(PATIENCE_S, self._late)

    def _wait_no_longer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        if self._answering:  # the request before is being answered, and nothing is read meanwhile
            self._wait()
        else:
            self._deadline = None
            self.transport.close()

    def _refuse(self) -> None:
        if not self._answering and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
