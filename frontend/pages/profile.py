"""Pages of an account: password, second factor, sessions, what is held about its owner, and the end of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import UUID

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from dermserve.errors import DermserveError, Forbidden, RateLimited, RequestInvalid
from frontend import audit
from frontend.access import Caller
from frontend.audit import Action
from frontend.dependencies import AtPage, AtPageDep, FormDep, Services
from frontend.identity import passwords
from frontend.identity.tokens import fingerprint
from frontend.models import ApiKey
from frontend.pages.confirmation import confirm
from frontend.pages.rendering import page
from frontend.pages.streams import streamed
from frontend.schemas import Result

router = APIRouter(prefix="/profile", include_in_schema=False)


@router.get("")
async def profile(at: AtPageDep, done: str = "") -> Response:
    """Everything about the account on one page."""
    return await _profile(at, done=done)


@router.post("/password")
async def change_password(at: AtPageDep, form: FormDep) -> Response:
    """Set another password; every other session ends."""
    try:
        await at.services.throttle.before_password(at.user)
        await at.services.users.change_password(
            at.user, form.get("old", ""), form.get("password", ""), keep_session=at.visit.token
        )
        await at.services.throttle.after_password(at.user)
    except (Forbidden, RequestInvalid, RateLimited) as error:
        return await _profile(at, error=error)
    return RedirectResponse("/profile?done=password", 303)


@router.post("/second-factor/offer")
async def offer_second_factor(at: AtPageDep, form: FormDep) -> Response:
    """Show a secret for an app; asks for the password, or whoever finds a session open could lock its owner out."""
    try:
        await confirm(at, form)
        await at.services.second_factor.offer(at.user)
    except (Forbidden, RequestInvalid, RateLimited) as error:
        return await _profile(at, error=error)
    return await _profile(at, offered=True)


@router.post("/second-factor/on")
async def turn_on_second_factor(at: AtPageDep, form: FormDep) -> Response:
    """Ask for a code from now on, once a first one shows that the app has the secret; every other session ends."""
    try:
        await at.services.throttle.before_code(at.user.user_id)
        await at.services.second_factor.turn_on(at.user, form.get("code", ""), keep_session=at.visit.token)
    except (RequestInvalid, RateLimited) as error:
        return await _profile(at, error=error, offered=True)
    return RedirectResponse("/profile?done=second-factor-on", 303)


@router.post("/second-factor/off")
async def turn_off_second_factor(at: AtPageDep, form: FormDep) -> Response:
    """Ask for no code any more."""
    try:
        await at.services.throttle.before_code(at.user.user_id)
        await at.services.second_factor.turn_off(at.user, form.get("code", ""))
    except (RequestInvalid, RateLimited) as error:
        return await _profile(at, error=error)
    return RedirectResponse("/profile?done=second-factor-off", 303)


@router.post("/sessions/{session_id:uuid}/revoke")
async def revoke_session(session_id: UUID, at: AtPageDep, form: FormDep) -> Response:
    """End a session, on this or another device."""
    del form
    await at.services.sessions.revoke(at.user, session_id)
    return RedirectResponse("/profile", 303)


@router.get("/export.json")
async def export(at: AtPageDep) -> Response:
    """Everything that is held about the user, as one JSON document (GDPR, articles 15 and 20)."""
    async with at.services.database.transaction() as session:
        await audit.append(session, Action.ACCOUNT_EXPORTED, actor=at.user.user_id, about=at.user.user_id)
    return await streamed(_export(at.services, at.user), "dermserve-account.json", "application/json")


@router.post("/delete")
async def delete(at: AtPageDep, form: FormDep) -> Response:
    """Delete the account with all its results; asks for the password, or for the address where there is none."""
    try:
        await confirm(at, form)
    except (Forbidden, RateLimited) as error:
        return await _profile(at, error=error)
    await at.services.users.delete(at.user)
    response = RedirectResponse("/", 303)
    at.services.cookie.clear(response)
    return response


async def _export(services: Services, user: Caller) -> AsyncIterator[str]:
    account = await services.users.get(user)
    organisation = await services.organisations.of(user)
    about = {
        "account": {
            "email": account.email,
            "role": account.role,
            "organisation": organisation.name if organisation else None,
            "created_at": account.created_at.isoformat(),
            "second_factor_since": account.totp_since.isoformat() if account.totp_since else None,
            "sign_on": account.issuer,
            "name_at_sign_on": account.subject,
        },
        "sessions": [
            {"created_at": one.created_at.isoformat(), "expires_at": one.expires_at.isoformat(), "agent": one.agent}
            for one in await services.sessions.all(user)
        ],
        "api_keys": [
            {"name": one.name, "begins_with": one.hint, "scopes": one.scopes} | _times(one)
            for one in await services.keys.all(user.user_id)
        ],
        "lesions": [
            {"name": one.name, "body_site": one.body_site, "created_at": one.created_at.isoformat()}
            for one in await services.lesions.all(user)
        ],
    }
    yield json.dumps(about, ensure_ascii=False)[:-1] + ', "results": ['
    names = {one.id: one.name for one in await services.lesions.all(user)}
    first = True
    async for row in services.history.all(user):
        entry = {"filename": row.filename, **Result.of(row, cam=True, lesions=names).model_dump(mode="json")}
        yield ("" if first else ",") + "\n" + json.dumps(entry, ensure_ascii=False)
        first = False
    yield '\n], "audit": ['
    first = True
    async for noted in audit.of_account(services.database, user.user_id):
        line = {"at": noted.at.isoformat(), "action": noted.action, "object": noted.object}
        yield ("" if first else ",") + "\n" + json.dumps(line)
        first = False
    yield "\n]}\n"


def _times(key: ApiKey) -> dict[str, str | None]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")}
    return {name: at.isoformat() if at else None for name, at in times.items()}


async def _profile(
    at: AtPage, *, error: DermserveError | None = None, done: str = "", offered: bool = False
) -> Response:
    return page(
        at.request,
        at.visit,
        "profile.html",
        error=error,
        done=done,
        account=await at.services.users.get(at.user),
        organisation=await at.services.organisations.of(at.user),
        sessions=await at.services.sessions.all(at.user),
        this_session=fingerprint(at.visit.token),
        offer=await at.services.second_factor.offered(at.user) if offered else None,
        password_min=passwords.SHORTEST,
    )
