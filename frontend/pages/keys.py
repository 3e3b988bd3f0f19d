"""The page of API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, DermserveError, Forbidden, RateLimited, RequestInvalid
from frontend.access import Scope
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.pages.confirmation import confirm
from frontend.pages.rendering import page

router = APIRouter(prefix="/keys", include_in_schema=False)
LIFETIMES: Final = {"": None, "30": 30, "90": 90, "365": 365}
"""Days that a new key is good for, by what the form sends."""


@router.get("")
async def keys(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """API keys of the user."""
    del user
    return await _keys(request, services, visit)


@router.post("")
async def create(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, form: FormDep) -> Response:
    """Create a key and show it, this once; asks who is there, since a key outlives the session."""
    scopes = {scope for scope in Scope if form.get(scope)}
    days = LIFETIMES.get(form.get("days", ""))
    try:
        await confirm(services, user, form)
        key = await services.keys.create(
            user.user_id,
            form.get("name", ""),
            scopes=scopes,
            expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
        )
    except (Forbidden, RateLimited, RequestInvalid, Conflict) as error:
        return await _keys(request, services, visit, error=error)
    return await _keys(request, services, visit, new_key=key)


@router.post("/{key_id:uuid}/revoke")
async def revoke(key_id: UUID, services: ServicesDep, user: UserDep, form: FormDep) -> Response:
    """Make a key useless."""
    del form
    await services.keys.revoke(user.user_id, key_id)
    return RedirectResponse("/keys", 303)


async def _keys(
    request: Request,
    services: Services,
    visit: Visit,
    *,
    error: DermserveError | None = None,
    new_key: str | None = None,
) -> Response:
    assert visit.caller is not None
    return page(
        request,
        visit,
        "keys.html",
        error=error,
        has_password=(await services.users.get(visit.caller)).password_hash is not None,
        keys=await services.keys.all(visit.caller.user_id),
        now=datetime.now(UTC),
        new_key=new_key,
        base_url=services.base_url(request),
    )
