"""Pages for strangers who come in: register, log in, the second factor, a hospital's sign-on, a forgotten password."""

from __future__ import annotations

from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.background import BackgroundTask
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, Forbidden, NotFound, RateLimited, RequestInvalid, Unauthenticated, Unavailable
from frontend import security
from frontend.access import Caller
from frontend.dependencies import FormDep, Services, ServicesDep, Visit, VisitDep
from frontend.identity import passwords, sign_on
from frontend.identity.users import RESET_LIFETIME
from frontend.pages.local import AFTER_LOGIN, local
from frontend.pages.rendering import form_page
from frontend.templating import render_text

router = APIRouter(include_in_schema=False)
_CALLBACK = f"{sign_on.PATH}/callback"


@router.get("/login")
async def login_page(request: Request, services: ServicesDep, visit: VisitDep, next: str = "") -> Response:
    """The login form; `next` is where to go afterwards."""
    if visit.caller is not None:
        return RedirectResponse(local(next), 303)
    return _login_page(request, services, visit, next=local(next))


@router.post("/login")
async def log_in(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Begin a new session if the password is right; the same answer whether the address or the password is wrong."""
    email, target = form.get("email", ""), local(form.get("next", ""))
    address = _address(request)
    try:
        await services.throttle.before_login(address, email)
    except RateLimited as error:
        return _login_page(request, services, visit, error=error, email=email, next=target)
    login = await services.users.log_in(email, form.get("password", ""))
    await services.throttle.after_login(address, email, success=login is not None)
    if login is None:
        wrong = Unauthenticated("The address or the password is not right.")
        return _login_page(request, services, visit, error=wrong, email=email, next=target)
    if login.second_factor:
        challenge = services.second_factor.challenge(login.caller)
        return form_page(request, services, visit, "second_factor.html", challenge=challenge, next=target)
    return await _welcome(request, services, visit, login.caller, target)


@router.post("/login/code")
async def log_in_with_code(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """The second step of a login: the code of the app."""
    challenge, target = form.get("challenge", ""), local(form.get("next", ""))
    user_id = services.second_factor.challenged(challenge)
    if user_id is None:
        late = Unauthenticated("That took too long. Please log in again.")
        return _login_page(request, services, visit, error=late, next=target)
    try:
        caller = await _with_code(services, user_id, form.get("code", ""))
    except (RateLimited, Unauthenticated) as error:
        return form_page(request, services, visit, "second_factor.html", error=error, challenge=challenge, next=target)
    return await _welcome(request, services, visit, caller, target)


async def _with_code(services: Services, user_id: UUID, code: str) -> Caller:
    await services.throttle.before_code(user_id)
    caller = await services.second_factor.log_in(user_id, code)
    if caller is None:
        await services.users.failed(user_id)
        raise Unauthenticated("The code is not right. It changes every half minute.")
    return caller


@router.get(sign_on.PATH)
async def begin_sign_on(request: Request, services: ServicesDep, next: str = "") -> Response:
    """Off to the hospital's sign-on, from a page of ours: a link elsewhere must not log anybody in unasked."""
    _require_sign_on(services)
    if request.headers.get("sec-fetch-site", "none") not in security.OWN_SITES:
        return RedirectResponse("/login?next=" + quote(local(next), safe="/"), 303)
    return await services.sign_on.begin(request, services.own_url + _CALLBACK, local(next))


@router.get(_CALLBACK)
async def finish_sign_on(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """Back from the hospital's sign-on, which has its own second factor."""
    _require_sign_on(services)
    try:
        found = await services.sign_on.finish(request)
        caller = await services.users.signed_on(found.issuer, found.subject, found.email)
    except (Unauthenticated, Unavailable, Conflict, Forbidden, RequestInvalid) as error:
        return _login_page(request, services, visit, error=error)
    response = await _welcome(request, services, visit, caller, local(found.target))
    services.sign_on.forget(response)
    return response


def _require_sign_on(services: Services) -> None:
    if services.sign_on.name is None:
        raise NotFound


@router.get("/register")
async def register_page(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The registration form."""
    if visit.caller is not None:
        return RedirectResponse(AFTER_LOGIN, 303)
    return _password_page(request, services, visit, "register.html")


@router.post("/register")
async def register(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Create an account and log in."""
    email = form.get("email", "")
    try:
        await services.throttle.before_registration(_address(request))
        caller = await services.users.register(email, form.get("password", ""))
    except (RequestInvalid, Conflict, RateLimited) as error:
        return _password_page(request, services, visit, "register.html", error=error, email=email)
    return await _welcome(request, services, visit, caller, AFTER_LOGIN)


@router.post("/logout")
async def log_out(services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """End the session here and in the database."""
    del form  # it is asked for because asking checks its CSRF token
    await services.sessions.close(visit.token)
    response = RedirectResponse("/", 303)
    services.cookie.clear(response)
    return response


@router.get("/forgot")
async def forgot_page(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """Ask for a link that sets a new password."""
    return form_page(request, services, visit, "forgot.html", sent=False)


@router.post("/forgot")
async def forgot(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Mail the link. The answer, and the time it takes, are the same whether or not there is such an account."""
    email = form.get("email", "")
    try:
        await services.throttle.before_reset(_address(request), email)
    except RateLimited as error:
        return form_page(request, services, visit, "forgot.html", error=error, email=email, sent=False)
    response = form_page(request, services, visit, "forgot.html", sent=True)
    response.background = BackgroundTask(_mail_link, request, services, email)
    return response


async def _mail_link(request: Request, services: Services, email: str) -> None:
    asked = await services.users.ask_for_reset(email)
    if asked is None:
        return
    address, token = asked
    # After the #: no proxy or log on the way ever sees it, nor does a page that is left from here.
    link = f"{services.own_url}/reset#{token}"
    hours = int(RESET_LIFETIME.total_seconds() // 3600)
    subject, _, text = render_text(request, "mail_reset.txt", link=link, hours=hours).partition("\n\n")
    await services.mailer.send(address, subject, text)


@router.get("/reset")
async def reset_page(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """Set a new password; the page's script takes the token out of the address."""
    return _password_page(request, services, visit, "reset.html", token="")


@router.post("/reset")
async def reset(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Set the new password and end all sessions."""
    token = form.get("token", "")
    try:
        await services.users.reset_password(token, form.get("password", ""))
    except (NotFound, RequestInvalid) as error:
        return _password_page(request, services, visit, "reset.html", error=error, token=token)
    return RedirectResponse("/login", 303)


async def _welcome(request: Request, services: Services, visit: Visit, caller: Caller, target: str) -> Response:
    """Open a session under a new token: one that somebody planted in the browser before stays worthless."""
    await services.sessions.close(visit.token)
    try:
        token = await services.sessions.open(caller, request.headers.get("user-agent", ""))
    except Unauthenticated as error:
        return _login_page(request, services, visit, error=error, next=target)
    response = RedirectResponse(target, 303)
    services.cookie.write(response, token, max_age_s=int(services.sessions.lifetime.total_seconds()))
    return response


def _login_page(
    request: Request,
    services: Services,
    visit: Visit,
    *,
    error: RateLimited | Unauthenticated | Unavailable | Conflict | Forbidden | RequestInvalid | None = None,
    email: str = "",
    next: str = AFTER_LOGIN,
) -> Response:
    name, path = services.sign_on.name, sign_on.PATH
    return form_page(
        request, services, visit, "login.html", error=error, email=email, next=next, sign_on=name, sign_on_path=path
    )


def _password_page(
    request: Request,
    services: Services,
    visit: Visit,
    template: str,
    *,
    error: RateLimited | RequestInvalid | Conflict | NotFound | None = None,
    **context: str,
) -> Response:
    shortest = passwords.SHORTEST
    return form_page(request, services, visit, template, error=error, password_min=shortest, **context)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
