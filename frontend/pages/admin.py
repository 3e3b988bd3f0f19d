"""Pages of those who run the place: organisations and members, the audit."""

from __future__ import annotations

from typing import Annotated, Final, TypedDict
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, DermserveError, NotFound, RequestInvalid
from frontend import audit
from frontend.access import Permission, Role
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.organisations import shown
from frontend.pages.rendering import page

router = APIRouter(prefix="/admin", include_in_schema=False)
_PER_PAGE: Final = 100
Before = Annotated[int | None, Query(ge=1, le=2**62)]


class _Seen(TypedDict):
    seen: str
    confirmed: int


@router.get("")
async def members(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, search: str = ""
) -> Response:
    """Organisations and accounts."""
    user.require(Permission.MANAGE_MEMBERS)
    return await _members(request, services, visit, search=search)


@router.post("/organisations")
async def create_organisation(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, form: FormDep
) -> Response:
    """Add an organisation."""
    try:
        await services.organisations.create(user, form.get("name", ""))
    except (RequestInvalid, Conflict) as error:
        return await _members(request, services, visit, error=error)
    return RedirectResponse("/admin", 303)


@router.post("/organisations/{organisation_id:uuid}")
async def change_organisation(
    organisation_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, *, user: UserDep, form: FormDep
) -> Response:
    """Rename it, or change how long its results are kept."""
    try:
        due = await services.organisations.change(
            user, organisation_id, form.get("name", ""), form.get("retention_days", ""), **_as_seen(form)
        )
    except (RequestInvalid, Conflict) as error:
        return await _members(request, services, visit, error=error)
    if due:
        return await _members(request, services, visit, asked=(organisation_id, form, due))
    return RedirectResponse("/admin", 303)


@router.post("/members/{user_id:uuid}")
async def change_member(
    user_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, *, user: UserDep, form: FormDep
) -> Response:
    """Set role and organisation, disable or enable."""
    search = form.get("search", "")
    try:
        due = await services.organisations.change_member(
            user,
            user_id,
            role=form.get("role", ""),
            organisation_id=form.get("organisation", ""),
            enabled=bool(form.get("enabled")),
            **_as_seen(form),
        )
    except (RequestInvalid, NotFound, Conflict) as error:
        return await _members(request, services, visit, error=error, search=search)
    if due:
        return await _members(request, services, visit, search=search, asked=(user_id, form, due))
    return RedirectResponse("/admin", 303)


@router.get("/audit")
async def audit_page(
    request: Request,
    services: ServicesDep,
    visit: VisitDep,
    user: UserDep,
    before: Before = None,
) -> Response:
    """The audit, newest first."""
    entries = await services.organisations.audit(user, before=before, limit=_PER_PAGE)
    more = entries[-1].number if len(entries) == _PER_PAGE and entries[-1].number > 1 else None
    return page(request, visit, "audit.html", entries=entries, more=more, verdict=None)


@router.post("/audit/verify")
async def verify_audit(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, form: FormDep
) -> Response:
    """Recompute the whole chain."""
    del form
    entries = await services.organisations.audit(user, limit=_PER_PAGE)
    verdict = await audit.verify(services.database)
    return page(request, visit, "audit.html", entries=entries, more=None, verdict=verdict)


def _as_seen(form: dict[str, str]) -> _Seen:
    """What the form showed before it was changed, and how many deleted results its sender agreed to."""
    confirmed = form.get("confirmed", "")
    known = confirmed.isascii() and confirmed.isdigit() and len(confirmed) < 10
    return {"seen": form.get("seen", ""), "confirmed": int(confirmed) if known else 0}


async def _members(
    request: Request,
    services: Services,
    visit: Visit,
    *,
    error: DermserveError | None = None,
    search: str = "",
    asked: tuple[UUID, dict[str, str], int] | None = None,
) -> Response:
    assert visit.caller is not None
    if asked is not None:
        error = Conflict(
            "Nothing is changed yet: results would be deleted. Please confirm it below, or leave this page."
        )
    return page(
        request,
        visit,
        "admin.html",
        error=error,
        search=search,
        organisations=await services.organisations.all(visit.caller),
        members=await services.organisations.members(visit.caller, search=search),
        shown=shown,
        asked=asked,
        roles=[role.value for role in Role],
    )
