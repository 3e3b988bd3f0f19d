"""Long answers in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Response
from starlette.responses import StreamingResponse


async def streamed(pieces: AsyncIterator[str], filename: str, media_type: str) -> Response:
    """A download, sent while it is made.

    The first piece is fetched before the status goes out, so that a database that is away still gives a 503.
    """
    first = await anext(pieces)
    disposition = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return StreamingResponse(_after(first, pieces), media_type=f"{media_type}; charset=utf-8", headers=disposition)


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for piece in rest:
        yield piece
