"""Pages of those who run the place: organisations and members, the audit."""

from __future__ import annotations

from typing import Annotated, Final, TypedDict
from uuid import UUID

from fastapi import APIRouter, Query, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, DermserveError, NotFound, RequestInvalid
from frontend import audit
from frontend.access import Permission, Role
from frontend.dependencies import AtPage, AtPageDep, FormDep
from frontend.organisations import shown
from frontend.pages.rendering import page

router = APIRouter(prefix="/admin", include_in_schema=False)
_PER_PAGE: Final = 100
Before = Annotated[int | None, Query(ge=1, le=2**62)]


class _Seen(TypedDict):
    seen: str
    confirmed: int


@router.get("")
async def members(at: AtPageDep, search: str = "") -> Response:
    """Organisations and accounts."""
    at.user.require(Permission.MANAGE_MEMBERS)
    return await _members(at, search=search)


@router.post("/organisations")
async def create_organisation(at: AtPageDep, form: FormDep) -> Response:
    """Add an organisation."""
    try:
        await at.services.organisations.create(at.user, form.get("name", ""))
    except (RequestInvalid, Conflict) as error:
        return await _members(at, error=error)
    return RedirectResponse("/admin", 303)


@router.post("/organisations/{organisation_id:uuid}")
async def change_organisation(organisation_id: UUID, at: AtPageDep, form: FormDep) -> Response:
    """Rename it, or change how long its results are kept."""
    try:
        due = await at.services.organisations.change(
            at.user, organisation_id, form.get("name", ""), form.get("retention_days", ""), **_as_seen(form)
        )
    except (RequestInvalid, Conflict) as error:
        return await _members(at, error=error)
    if due:
        return await _members(at, asked=(organisation_id, form, due))
    return RedirectResponse("/admin", 303)


@router.post("/members/{user_id:uuid}")
async def change_member(user_id: UUID, at: AtPageDep, form: FormDep) -> Response:
    """Set role and organisation, disable or enable."""
    search = form.get("search", "")
    try:
        due = await at.services.organisations.change_member(
            at.user,
            user_id,
            role=form.get("role", ""),
            organisation_id=form.get("organisation", ""),
            enabled=bool(form.get("enabled")),
            **_as_seen(form),
        )
    except (RequestInvalid, NotFound, Conflict) as error:
        return await _members(at, error=error, search=search)
    if due:
        return await _members(at, search=search, asked=(user_id, form, due))
    return RedirectResponse("/admin", 303)


@router.get("/audit")
async def audit_page(at: AtPageDep, before: Before = None) -> Response:
    """The audit, newest first."""
    entries = await at.services.organisations.audit(at.user, before=before, limit=_PER_PAGE)
    more = entries[-1].number if len(entries) == _PER_PAGE and entries[-1].number > 1 else None
    return page(at.request, at.visit, "audit.html", entries=entries, more=more, verdict=None)


@router.post("/audit/verify")
async def verify_audit(at: AtPageDep, form: FormDep) -> Response:
    """Recompute the whole chain."""
    del form
    entries = await at.services.organisations.audit(at.user, limit=_PER_PAGE)
    verdict = await audit.verify(at.services.database)
    return page(at.request, at.visit, "audit.html", entries=entries, more=None, verdict=verdict)


def _as_seen(form: dict[str, str]) -> _Seen:
    """What the form showed before it was changed, and how many deleted results its sender agreed to."""
    confirmed = form.get("confirmed", "")
    known = confirmed.isascii() and confirmed.isdigit() and len(confirmed) < 10
    return {"seen": form.get("seen", ""), "confirmed": int(confirmed) if known else 0}


async def _members(
    at: AtPage,
    *,
    error: DermserveError | None = None,
    search: str = "",
    asked: tuple[UUID, dict[str, str], int] | None = None,
) -> Response:
    if asked is not None:
        error = Conflict(
            "Nothing is changed yet: results would be deleted. Please confirm it below, or leave this page."
        )
    return page(
        at.request,
        at.visit,
        "admin.html",
        error=error,
        search=search,
        organisations=await at.services.organisations.all(at.user),
        members=await at.services.organisations.members(at.user, search=search),
        shown=shown,
        asked=asked,
        roles=[role.value for role in Role],
    )
