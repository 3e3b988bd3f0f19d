"""The page of API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, DermserveError, Forbidden, RateLimited, RequestInvalid
from frontend.access import Scope
from frontend.dependencies import AtPage, AtPageDep, FormDep
from frontend.pages.confirmation import confirm
from frontend.pages.rendering import page

router = APIRouter(prefix="/keys", include_in_schema=False)
LIFETIMES: Final = {"": None, "30": 30, "90": 90, "365": 365}
"""Days that a new key is good for, by what the form sends."""


@router.get("")
async def keys(at: AtPageDep) -> Response:
    """API keys of the user."""
    return await _keys(at)


@router.post("")
async def create(at: AtPageDep, form: FormDep) -> Response:
    """Create a key and show it, this once; asks who is there, since a key outlives the session."""
    scopes = {scope for scope in Scope if form.get(scope)}
    days = LIFETIMES.get(form.get("days", ""))
    try:
        await confirm(at, form)
        key = await at.services.keys.create(
            at.user.user_id,
            form.get("name", ""),
            scopes=scopes,
            expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
        )
    except (Forbidden, RateLimited, RequestInvalid, Conflict) as error:
        return await _keys(at, error=error)
    return await _keys(at, new_key=key)


@router.post("/{key_id:uuid}/revoke")
async def revoke(key_id: UUID, at: AtPageDep, form: FormDep) -> Response:
    """Make a key useless."""
    del form
    await at.services.keys.revoke(at.user.user_id, key_id)
    return RedirectResponse("/keys", 303)


async def _keys(at: AtPage, *, error: DermserveError | None = None, new_key: str | None = None) -> Response:
    return page(
        at.request,
        at.visit,
        "keys.html",
        error=error,
        has_password=(await at.services.users.get(at.user)).password_hash is not None,
        keys=await at.services.keys.all(at.user.user_id),
        now=datetime.now(UTC),
        new_key=new_key,
        base_url=at.services.base_url(at.request),
    )
