"""A page for whoever looks at it."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from dermserve.errors import DermserveError
from frontend import problems
from frontend.dependencies import Services, Visit
from frontend.templating import render


def page(
    request: Request, visit: Visit, template: str, *, error: DermserveError | None = None, **context: Any
) -> Response:
    """A page for a visitor; with `error` under that status, the page saying what was wrong."""
    if error is not None:
        problems.note(request, error)
    token = visit.csrf_token if visit.caller else None
    return render(
        request,
        template,
        status=200 if error is None else error.http_status,
        headers=_headers(error),
        caller=visit.caller,
        csrf_token=token,
        error=error,
        **context,
    )


def form_page(
    request: Request,
    services: Services,
    visit: Visit,
    template: str,
    *,
    error: DermserveError | None = None,
    **context: Any,
) -> Response:
    """A page with a form for a stranger, whose browser gets a cookie to tie the form to."""
    if error is not None:
        problems.note(request, error)
    response = render(
        request,
        template,
        status=200 if error is None else error.http_status,
        headers=_headers(error),
        csrf_token=visit.csrf_token,
        error=error,
        **({"email": ""} | context),
    )
    if visit.is_new:
        services.cookie.write(response, visit.token)
    return response


def _headers(error: DermserveError | None) -> dict[str, str]:
    return {"Retry-After": str(error.retry_after)} if error is not None and error.retry_after is not None else {}
