"""What a route may ask for: the services, the visitor, the caller. `Annotated` names, so that a route reads as its business."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from dermserve.errors import Unauthenticated
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from frontend import security
from frontend.access import Caller, Scope
from frontend.database import Database
from frontend.dicom.identifiers import Identifiers
from frontend.history import History
from frontend.identity.keys import Keys
from frontend.identity.second_factor import SecondFactor
from frontend.identity.sessions import Sessions
from frontend.identity.sign_on import SignOn
from frontend.identity.users import Users
from frontend.intake import Intake
from frontend.lesions import Lesions
from frontend.mail import Mailer
from frontend.metrics import Metrics
from frontend.organisations import Organisations
from frontend.predictions import Inference, Predictions
from frontend.throttle import Throttle
from frontend.upload import read_form

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  compared with, not listened on


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the process."""

    settings: Settings
    card: ModelCard
    database: Database
    inference: Inference
    users: Users
    sessions: Sessions
    keys: Keys
    second_factor: SecondFactor
    identifiers: Identifiers
    sign_on: SignOn
    mailer: Mailer
    predictions: Predictions
    history: History
    lesions: Lesions
    organisations: Organisations
    intake: Intake
    throttle: Throttle
    metrics: Metrics
    cookie: security.SessionCookie

    def base_url(self, request: Request) -> str:
        """What the sender of this request calls the server, without a final slash: to be shown to them, nowhere else."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")

    @property
    def own_url(self) -> str:
        """Where others are sent, by mail or by a sign-on: never what a request's `Host` says, which its sender chooses."""
        host = "127.0.0.1" if self.settings.host in _EVERYWHERE else self.settings.host
        host = f"[{host}]" if ":" in host else host
        return (self.settings.public_url or f"http://{host}:{self.settings.port}").rstrip("/")


@dataclass(frozen=True)
class Visit:
    """A browser at a page. `token` is its cookie's, or a fresh one (`is_new`) that a page with a form must set."""

    token: str
    is_new: bool
    caller: Caller | None

    @property
    def csrf_token(self) -> str:
        return security.csrf_token(self.token)


async def services(request: Request) -> Services:  # not a plain function: FastAPI would call that in a thread
    """The services of the application that answers this request."""
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def visit(request: Request, services: ServicesDep) -> Visit:
    """Who is at the page; no login is needed."""
    token = services.cookie.read(request)
    if not token:
        return Visit(secrets.token_urlsafe(32), is_new=True, caller=None)
    caller = await services.sessions.caller(token)
    request.state.caller = caller  # for the log of refusals
    return Visit(token, is_new=False, caller=caller)


VisitDep = Annotated[Visit, Depends(visit)]


async def page_user(visit: VisitDep) -> Caller:
    """The person who is logged in.

    Raises:
        Unauthenticated: nobody is; a browser is sent to the login page.
    """
    if visit.caller is None:
        raise Unauthenticated
    return visit.caller


UserDep = Annotated[Caller, Depends(page_user)]


@dataclass(frozen=True)
class AtPage:
    """Somebody who is logged in, at a page of theirs: what nearly every route there needs."""

    request: Request
    services: Services
    visit: Visit
    user: Caller


async def at_page(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> AtPage:
    """The user with their request.

    Raises:
        Unauthenticated: nobody is logged in.
    """
    return AtPage(request, services, visit, user)


AtPageDep = Annotated[AtPage, Depends(at_page)]


async def checked_form(request: Request, visit: VisitDep) -> dict[str, str]:
    """The fields of a form that one of our own pages made for this very session.

    Raises:
        Forbidden: it was not.
    """
    form = await read_form(request)
    security.check_csrf(request, None if visit.is_new else visit.token, form.get(security.CSRF_FIELD))
    return form


FormDep = Annotated[dict[str, str], Depends(checked_form)]


async def api_caller(request: Request, services: ServicesDep) -> Caller:
    """Who calls the API: a machine by its key, or a person by the session of a page and its CSRF token.

    Raises:
        Unauthenticated: neither.
        Forbidden: a session without the page's token.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        caller = await services.keys.caller(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Unauthenticated("The API key is not valid or was revoked.")
        request.state.caller = caller
        return caller
    visitor = await visit(request, services)
    if visitor.caller is None:
        raise Unauthenticated("Send an API key as 'Authorization: Bearer …', or log in.")
    if request.method not in security.SAFE_METHODS:
        security.check_csrf(request, visitor.token, request.headers.get(security.CSRF_HEADER))
    return visitor.caller


CallerDep = Annotated[Caller, Depends(api_caller)]


def _with(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def check(caller: CallerDep) -> Caller:
        caller.require(scope)
        return caller

    return check


SenderDep = Annotated[Caller, Depends(_with(Scope.PREDICT))]
ReaderDep = Annotated[Caller, Depends(_with(Scope.READ))]
EditorDep = Annotated[Caller, Depends(_with(Scope.DELETE))]
"""Callers of the API whose key, where they come with one, is good for sending, reading, or changing and deleting."""
