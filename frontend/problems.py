"""Errors on the wire: RFC 9457 `application/problem+json` for programs, a page in plain words for people.

The status and the stable `code` come from `dermserve.errors`; nothing is invented here, and nothing internal leaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from dermserve.errors import (
    DermserveError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RequestInvalid,
    Unauthenticated,
    Unavailable,
)
from frontend.logs import note_refusal
from frontend.templating import render

CONTENT_TYPE: Final = "application/problem+json"
_PROGRAM_PATHS: Final = ("/v1/", "/dicomweb/", "/healthz", "/readyz", "/metrics", "/openapi.json")
_BY_STATUS: Final[Mapping[int, type[DermserveError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    429: RateLimited,
    503: Unavailable,
}


class Problem(BaseModel):
    """An error. Programs should look at `code`, which does not change; `detail` is for people."""

    type: str = Field(description="Where the code is explained.")
    title: str
    status: int
    code: str = Field(description="Stable name of the error.")
    detail: str


def document(error: DermserveError) -> Problem:
    """What programs are told of an error."""
    return Problem(
        type=f"/docs#{error.code}", title=error.title, status=error.http_status, code=error.code, detail=error.detail
    )


def respond(
    request: Request, error: DermserveError, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> Response:
    """The response for an error: a page where a browser asked for one, else a problem document.

    `extra` becomes further members of the document (RFC 9457 §3.2).
    """
    sent = dict(headers or {})
    if error.retry_after is not None:
        sent["Retry-After"] = str(error.retry_after)
    if error.http_status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if _leads_to_login(request, error):
        return RedirectResponse("/login?next=" + quote(_return_path(request), safe="/"), status_code=303)
    if _wants_page(request):
        return render(request, "error.html", status=error.http_status, headers=sent, error=error)
    return JSONResponse(document(error).model_dump() | extra, error.http_status, sent, media_type=CONTENT_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of `app` leave through `respond`, and count it."""

    @app.exception_handler(DermserveError)
    async def known(request: Request, error: DermserveError) -> Response:
        if _leads_to_login(request, error):  # whoever is not logged in was refused nothing yet
            request.app.state.services.metrics.refused(error.code)
        else:
            note(request, error)
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Only where and why: the rejected value itself may be anything, and echoing it helps nobody.
        found = [{"where": ".".join(map(str, item["loc"])), "why": item["msg"]} for item in error.errors()]
        translated = RequestInvalid("; ".join(f"{item['where']}: {item['why']}" for item in found))
        note(request, translated)
        return respond(request, translated, errors=found)

    @app.exception_handler(HTTPException)
    async def raised_by_framework(request: Request, error: HTTPException) -> Response:
        kind = _BY_STATUS.get(error.status_code, RequestInvalid if error.status_code < 500 else DermserveError)
        translated = kind()
        note(request, translated)
        return respond(request, translated, headers=error.headers)


def note(request: Request, error: DermserveError) -> None:
    """Count a refusal, and write it into the log where it tells of somebody who tries what is not theirs."""
    request.app.state.services.metrics.refused(error.code)
    note_refusal(request, error)


def _leads_to_login(request: Request, error: DermserveError) -> bool:
    return isinstance(error, Unauthenticated) and _wants_page(request)


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith(_PROGRAM_PATHS) and "text/html" in request.headers.get("accept", "")


def _return_path(request: Request) -> str:
    """Where to go after the login: only to something that can be fetched again."""
    return request.url.path if request.method == "GET" else "/"
