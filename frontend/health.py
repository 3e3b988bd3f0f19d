"""For machines that watch over the server: alive, ready, figures."""

from __future__ import annotations

import asyncio
from math import nan
from typing import Final

from fastapi import APIRouter, Request, Response

from dermserve.errors import DatabaseUnavailable, DermserveError, InferenceUnavailable, Unavailable
from frontend import metrics, problems
from frontend.dependencies import Services, ServicesDep
from frontend.outbox import Outbox

_CHECK_S: Final = 3.0
router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Alive")
async def alive() -> dict[str, str]:
    """The process answers; nothing else is looked at."""
    return {"status": "alive"}


@router.get("/readyz", summary="Ready", response_model=None)
async def ready(request: Request, services: ServicesDep) -> Response | dict[str, object]:
    """200 only when the database answers and the model is loaded; else 503, naming the part."""
    names = ("database", "inference")
    found = await asyncio.gather(_database(services), _inference(services))
    parts = {name: "ready" if error is None else error.code for name, error in zip(names, found, strict=True)}
    for error in found:
        if error is not None:
            return problems.respond(request, error, parts=parts)
    return {"status": "ready", "parts": parts}


@router.get("/metrics", summary="Prometheus figures", response_class=Response)
async def figures(services: ServicesDep) -> Response:
    """Text exposition format. The outbox is counted anew: it must be seen to grow just where no worker runs."""
    try:
        async with asyncio.timeout(_CHECK_S):
            services.metrics.outbox(*await Outbox(services.database).figures())
    except (DermserveError, TimeoutError):
        services.metrics.outbox(nan, nan, nan)
    return Response(services.metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def _database(services: Services) -> DermserveError | None:
    try:
        async with asyncio.timeout(_CHECK_S):
            await services.database.check()
    except Unavailable as error:
        return error
    except TimeoutError:
        return DatabaseUnavailable()
    return None


async def _inference(services: Services) -> DermserveError | None:
    try:
        async with asyncio.timeout(_CHECK_S):
            if await services.inference.ready():
                return None
    except (Unavailable, TimeoutError):
        pass
    return InferenceUnavailable()
