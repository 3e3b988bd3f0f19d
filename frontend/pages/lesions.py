"""Pages of lesions: all of them, and one over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from dermserve.errors import Conflict, DermserveError, RequestInvalid
from frontend.access import Caller
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.lesions import BODY_SITES, NAME_MAX
from frontend.models import Prediction
from frontend.pages.rendering import page

router = APIRouter(prefix="/lesions", include_in_schema=False)


@router.get("")
async def lesions(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """All lesions, the one seen last first."""
    return page(request, visit, "lesions.html", followed=await services.lesions.followed(user))


@router.get("/{lesion_id:uuid}")
async def lesion(lesion_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """One lesion: its results over time."""
    return await _lesion(request, services, visit, user, lesion_id)


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
    error: DermserveError | None = None,
) -> Response:
    found = await services.lesions.get(user, lesion_id)
    results = await services.lesions.results(user, lesion_id)
    return page(
        request,
        visit,
        "lesion.html",
        error=error,
        lesion=found,
        results=results,
        marks=_marks(results),
        body_sites=BODY_SITES,
        lesion_max=NAME_MAX,
    )


def _marks(results: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Where the plot of melanoma probability over time has its marks, as percentages of its width and height."""
    shown = [row for row in results if not row.abstained]
    if not shown:
        return []
    first, last = shown[0].created_at, shown[-1].created_at
    span = (last - first).total_seconds() or 1.0
    return [
        {
            "x": 50.0 if len(shown) == 1 else 100 * (row.created_at - first).total_seconds() / span,
            "y": 100 * (1 - row.probabilities[3]),
            "row": row,
        }
        for row in shown
    ]
