"""Pages of lesions: all of them, one over time, and what a name typed elsewhere would join."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote, urlencode
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import JSONResponse, RedirectResponse

from dermserve.errors import Conflict, DermserveError, RequestInvalid
from frontend.access import Caller
from frontend.context import BODY_SITES, NAME_MAX
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.history import Filter
from frontend.pages.rendering import page
from frontend.pages.trend import POINTS, trend
from frontend.templating import render_text

router = APIRouter(prefix="/lesions", include_in_schema=False)
_PER_PAGE: Final = 50
_RESULTS_PER_PAGE: Final = 25
_OFFERED: Final = 10


@router.get("")
async def lesions(
    request: Request,
    services: ServicesDep,
    visit: VisitDep,
    *,
    user: UserDep,
    cursor: str | None = None,
    search: Annotated[str, Query(max_length=NAME_MAX)] = "",
) -> Response:
    """Lesions, the one seen last first."""
    search = search.replace("\0", "").strip()
    followed, further = await services.lesions.followed(user, limit=_PER_PAGE, cursor=cursor or None, search=search)
    return page(
        request,
        visit,
        "lesions.html",
        followed=followed,
        further=further,
        first=not cursor,
        search=search,
        query=urlencode({"search": search}) if search else "",
        lesion_max=NAME_MAX,
    )


@router.get("/named")
async def named(
    request: Request,
    services: ServicesDep,
    user: UserDep,
    x_lesion: Annotated[str, Header(max_length=4096, description="What is typed, percent-encoded UTF-8.")] = "",
) -> Response:
    """What an image with this name as its lesion would join, and names that hold the text.

    The name comes in a header, as with an upload: addresses are written into the logs of proxies.
    """
    typed = unquote(x_lesion).replace("\0", "").strip()
    found = await services.lesions.known(user, typed) if typed else None
    like = await services.lesions.latest(user, limit=_OFFERED, holding=typed)
    answer = {
        "known": found is not None,
        "site": found.lesion.body_site if found else None,
        "words": render_text(request, "lesion_known.txt", known=found),
        "like": [one.name for one in like],
    }
    return JSONResponse(answer, headers={"Vary": "Accept-Language, Cookie"})


@router.get("/{lesion_id:uuid}")
async def lesion(
    lesion_id: UUID,
    request: Request,
    services: ServicesDep,
    visit: VisitDep,
    *,
    user: UserDep,
    cursor: str | None = None,
) -> Response:
    """One lesion: its results over time."""
    return await _lesion(request, services, visit, user, lesion_id, cursor=cursor or None)


@router.post("/{lesion_id:uuid}")
async def change(
    lesion_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, *, user: UserDep, form: FormDep
) -> Response:
    """Rename it, or say where it is."""
    try:
        await services.lesions.change(user, lesion_id, form.get("name", ""), form.get("body_site") or None)
    except (RequestInvalid, Conflict) as error:
        return await _lesion(request, services, visit, user, lesion_id, error=error)
    return RedirectResponse(f"/lesions/{lesion_id}", 303)


@router.post("/{lesion_id:uuid}/delete")
async def delete(lesion_id: UUID, services: ServicesDep, user: UserDep, form: FormDep) -> Response:
    """Forget the lesion; its results stay."""
    del form
    await services.lesions.delete(user, lesion_id)
    return RedirectResponse("/lesions", 303)


async def _lesion(
    request: Request,
    services: Services,
    visit: Visit,
    user: Caller,
    lesion_id: UUID,
    *,
    cursor: str | None = None,
    error: DermserveError | None = None,
) -> Response:
    found = await services.lesions.get(user, lesion_id)
    results = await services.history.page(user, limit=_RESULTS_PER_PAGE, cursor=cursor, wanted=Filter(lesion=lesion_id))
    plot = None if cursor else trend(*await services.lesions.scores(user, lesion_id, limit=POINTS))
    return page(
        request,
        visit,
        "lesion.html",
        error=error,
        lesion=found,
        results=results,
        first=cursor is None,
        plot=plot,
        body_sites=BODY_SITES,
        lesion_max=NAME_MAX,
    )
