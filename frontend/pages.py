"""Pages about results: home, upload, result, history, about, and the API's description."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request, Response
from PIL import Image
from starlette.responses import RedirectResponse, StreamingResponse

from dermserve import image, labels, sample
from dermserve.errors import BY_CODE, NotFound
from dermserve.model_card import ModelCard
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, Visit, VisitDep
from frontend.models import Prediction
from frontend.schemas import cam_of
from frontend.templating import render

router = APIRouter(include_in_schema=False)
_PER_PAGE: Final = 25
_SAMPLES: Final = 6
_SMALL: Final = (160, 120)  # pixels
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_CAM_LIMIT: Final = 10.0


@router.get("/")
async def home(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """What this is, for whom, and its limits."""
    return _page(request, visit, "home.html", card=services.card, point=_point(services))


@router.get("/about")
async def about(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The model card."""
    return _page(request, visit, "about.html", card=services.card, point=_point(services), leaf_names=labels.LEAF_NAMES)


@router.get("/upload")
async def upload(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """Choose images; the browser sends each to the API."""
    del user
    return _page(
        request,
        visit,
        "upload.html",
        max_bytes=image.MAX_BYTES,
        samples=range(1, _SAMPLES + 1),
        quality_measured=services.card.quality.measured,
    )


@router.get("/predictions/{prediction_id:uuid}")
async def result(
    prediction_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, user: UserDep
) -> Response:
    """One result, with the map over a local copy of the image."""
    row = await services.predictions.get(user, prediction_id)
    return _page(request, visit, "result.html", **_result_context(services, row))


@router.get("/predictions/{prediction_id:uuid}/fragment")
async def result_fragment(
    prediction_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, user: UserDep
) -> Response:
    """The same result without the page around it, for the upload page to show in place."""
    row = await services.predictions.get(user, prediction_id)
    return _page(request, visit, "_result.html", **_result_context(services, row))


@router.post("/predictions/{prediction_id:uuid}/delete")
async def delete(prediction_id: UUID, services: ServicesDep, user: UserDep, form: FormDep) -> Response:
    """Delete a result from the history."""
    del form  # asking for it checks its CSRF token
    await services.predictions.delete(user, prediction_id)
    return RedirectResponse("/history", 303)


@router.get("/history")
async def history(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, cursor: str | None = None
) -> Response:
    """Results newest first."""
    page = await services.predictions.page(user, limit=_PER_PAGE, cursor=cursor)
    return _page(request, visit, "history.html", page=page, first=cursor is None)


@router.get("/history.csv")
async def history_csv(services: ServicesDep, user: UserDep) -> Response:
    """The whole history as the contract's CSV, newest first."""
    lines = _csv(services.predictions.all(user))
    # The first lines are fetched before the status goes out, so that a database that is away still gives a 503.
    first = await anext(lines)
    disposition = {"Content-Disposition": 'attachment; filename="dermserve-history.csv"'}
    return StreamingResponse(_after(first, lines), media_type="text/csv; charset=utf-8", headers=disposition)


@router.get("/samples/{number}.jpg")
async def sample_image(number: int, small: bool = False) -> Response:
    """A drawn lesion image for those who have none at hand; `small` to choose from."""
    if not 1 <= number <= _SAMPLES:
        raise NotFound
    data = await asyncio.to_thread(_small_sample if small else _sample, number)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "public, max-age=86400"})


@router.get("/docs")
async def docs(request: Request, services: ServicesDep, visit: VisitDep) -> Response:
    """The API's description, rendered here: the usual viewers load their scripts from elsewhere."""
    base_url = services.base_url(request)
    return _page(request, visit, "docs.html", document=request.app.openapi(), errors=BY_CODE, base_url=base_url)


def _page(request: Request, visit: Visit, template: str, **context: Any) -> Response:
    token = visit.csrf_token if visit.caller else None
    return render(request, template, caller=visit.caller, csrf_token=token, **context)


def _point(services: Services) -> tuple[str, Any]:
    name = services.settings.operating_point
    return name, services.card.operating_point(name)


def _result_context(services: Services, row: Prediction) -> dict[str, Any]:
    diagnoses = zip(labels.LEAVES, row.diagnoses, strict=True)
    return {
        "row": row,
        "columns": dict(zip((name.lower() for name in labels.COLUMNS), row.probabilities, strict=True)),
        "diagnoses": sorted(((labels.LEAF_NAMES[leaf], value) for leaf, value in diagnoses), key=lambda one: -one[1]),
        "cam": cam_of(row).model_dump(),
        "cam_limit": _cam_limit(services.card),
        "point": _point_of(services.card, row),
        "quality_measured": services.card.quality.measured,
    }


def _point_of(card: ModelCard, row: Prediction) -> Any:
    """The card's figures for the decision in `row`, or None where the card now speaks of another model."""
    point = card.operating_points.get(row.operating_point)
    same = (card.name, card.version) == (row.model_name, row.model_version)
    return point if point is not None and same and point.threshold == row.threshold else None


def _cam_limit(card: ModelCard) -> float:
    """Where the map's colour scale ends: fixed for a model, so that two images can be compared."""
    limit = card.export.get("cam_limit")
    return float(limit) if isinstance(limit, int | float) and limit > 0 else _CAM_LIMIT


async def _csv(rows: AsyncIterator[Prediction]) -> AsyncIterator[str]:
    """CSV text, one piece for the header and the first row, then one a row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(labels.CSV_HEADER)
    async for row in rows:
        writer.writerow([csv_name(row), *(f"{value:.6f}" for value in row.probabilities)])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    if buffer.tell():
        yield buffer.getvalue()


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for piece in rest:
        yield piece


def csv_name(row: Prediction) -> str:
    """The name in the CSV; one that a spreadsheet would run as a formula is made plain text (OWASP, CSV injection)."""
    name = row.filename or str(row.id)
    return f"'{name}" if name.startswith(_FORMULA) else name


@lru_cache(maxsize=_SAMPLES)
def _sample(number: int) -> bytes:
    return sample.jpeg(number)


@lru_cache(maxsize=_SAMPLES)
def _small_sample(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(_sample(number)), formats=("JPEG",)).resize(_SMALL).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
