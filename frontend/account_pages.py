"""Pages about the visitor: register, log in, log out, API keys."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, RateLimited, RequestInvalid, Unauthenticated
from frontend.accounts import PASSWORD_MIN, Caller
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.templating import render

router = APIRouter(include_in_schema=False)
_AFTER_LOGIN = "/upload"


@router.get("/login")
async def login_page(request: Request, services: ServicesDep, visit: VisitDep, next: str = "") -> Response:
    """The login form; `next` is where to go afterwards."""
    if visit.caller is not None:
        return RedirectResponse(_local(next), 303)
    return _form_page(request, services, visit, "login.html", next=_local(next))


@router.post("/login")
async def log_in(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Begin a new session if the password is right; the same answer whether the address or the password is wrong."""
    email, target = form.get("email", ""), _local(form.get("next", ""))
    address = _address(request)
    try:
        await services.throttle.before_login(address, email)
    except RateLimited as error:
        return _form_page(request, services, visit, "login.html", error=error, email=email, next=target)
    caller = await services.accounts.log_in(email, form.get("password", ""))
    await services.throttle.after_login(address, email, success=caller is not None)
    if caller is None:
        wrong = Unauthenticated("The address or the password is not right.")
        return _form_page(request, services, visit, "login.html", error=wrong, email=email, next=target)
    return await _welcome(services, visit, caller, target)


@router.get("/register")
async def register_page(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The registration form."""
    if visit.caller is not None:
        return RedirectResponse(_AFTER_LOGIN, 303)
    return _form_page(request, services, visit, "register.html")


@router.post("/register")
async def register(request: Request, services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """Create an account and log in."""
    email = form.get("email", "")
    try:
        await services.throttle.before_registration(_address(request))
        caller = await services.accounts.register(email, form.get("password", ""))
    except (RequestInvalid, Conflict, RateLimited) as error:
        return _form_page(request, services, visit, "register.html", error=error, email=email)
    return await _welcome(services, visit, caller, _AFTER_LOGIN)


@router.post("/logout")
async def log_out(services: ServicesDep, visit: VisitDep, form: FormDep) -> Response:
    """End the session here and in the database."""
    del form  # it is asked for because asking checks its CSRF token
    await services.accounts.close_session(visit.token)
    response = RedirectResponse("/", 303)
    services.cookie.clear(response)
    return response


@router.get("/keys")
async def keys_page(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """API keys of the user."""
    return await _keys_page(request, services, visit, user)


@router.post("/keys")
async def create_key(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, form: FormDep
) -> Response:
    """Create a key and show it, this once."""
    try:
        key = await services.accounts.create_key(user.user_id, form.get("name", ""))
    except RequestInvalid as error:
        return await _keys_page(request, services, visit, user, error=error)
    return await _keys_page(request, services, visit, user, new_key=key)


@router.post("/keys/{key_id:uuid}/revoke")
async def revoke_key(key_id: UUID, services: ServicesDep, user: UserDep, form: FormDep) -> Response:
    """Make a key useless."""
    del form
    await services.accounts.revoke_key(user.user_id, key_id)
    return RedirectResponse("/keys", 303)


async def _welcome(services: Services, visit: Visit, caller: Caller, target: str) -> Response:
    """Open a session under a new token: one that somebody planted in the browser before stays worthless."""
    await services.accounts.close_session(visit.token)
    token = await services.accounts.open_session(caller)
    response = RedirectResponse(target, 303)
    lifetime_s = int(services.accounts.session_lifetime.total_seconds())
    services.cookie.write(response, token, max_age_s=lifetime_s)
    return response


def _form_page(
    request: Request,
    services: Services,
    visit: Visit,
    template: str,
    *,
    error: RateLimited | RequestInvalid | Conflict | Unauthenticated | None = None,
    **context: str,
) -> Response:
    """A page with a form for a stranger, whose browser gets a cookie to tie the form to."""
    headers = {"Retry-After": str(error.retry_after)} if error is not None and error.retry_after is not None else {}
    response = render(
        request,
        template,
        status=200 if error is None else error.http_status,
        headers=headers,
        csrf_token=visit.csrf_token,
        error=error,
        password_min=PASSWORD_MIN,
        **({"email": ""} | context),
    )
    if visit.is_new:
        services.cookie.write(response, visit.token)
    return response


async def _keys_page(
    request: Request,
    services: Services,
    visit: Visit,
    user: Caller,
    *,
    error: RequestInvalid | None = None,
    new_key: str | None = None,
) -> Response:
    return render(
        request,
        "keys.html",
        status=200 if error is None else error.http_status,
        caller=user,
        csrf_token=visit.csrf_token,
        keys=await services.accounts.keys(user.user_id),
        error=error,
        new_key=new_key,
        base_url=services.base_url(request),
    )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _local(path: str) -> str:
    """A path on this server, or the upload page: nobody may be sent elsewhere after the login."""
    if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable():
        return path
    return _AFTER_LOGIN
