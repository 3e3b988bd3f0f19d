"""Pages of results: upload, one result, the history, what it adds up to, downloads, a comparison."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from dermserve import image, labels
from dermserve.errors import RequestInvalid, TooManyLesions
from dermserve.model_card import ModelCard, OperatingPoint
from frontend.access import Caller
from frontend.context import BODY_SITES, NAME_MAX, NOTE_MAX, Context
from frontend.dependencies import FormDep, Services, ServicesDep, UserDep, VisitDep
from frontend.history import Filter
from frontend.models import Prediction
from frontend.pages.public import SAMPLES
from frontend.pages.rendering import page
from frontend.pages.streams import streamed
from frontend.schemas import Result, cam_of

router = APIRouter(include_in_schema=False)
_PER_PAGE: Final = 25
_FORMULA: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "＝",
    "＋",
    "－",
    "＠",
)  # full-width ones, too: some locales run them
_CAM_LIMIT: Final = 10.0
_COMPARED: Final = 4
_OFFERED: Final = 50


@router.get("/upload")
async def upload(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, lesion: str = "") -> Response:
    """Choose images; the browser sends each to the API. `lesion` fills its name in."""
    return page(
        request,
        visit,
        "upload.html",
        max_bytes=image.MAX_BYTES,
        samples=range(1, SAMPLES + 1),
        quality_measured=services.card.quality.measured,
        lesion=lesion[:NAME_MAX],
        **await _choices(services, user),
    )


@router.get("/predictions/{prediction_id:uuid}")
async def result(
    prediction_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, user: UserDep
) -> Response:
    """One result, with the map over a local copy of the image."""
    row = await services.history.get(user, prediction_id)
    choices = await _choices(services, user)
    return page(request, visit, "result.html", **choices, **await result_context(services, user, row))


@router.get("/predictions/{prediction_id:uuid}/fragment")
async def result_fragment(
    prediction_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, user: UserDep
) -> Response:
    """The same result without the page around it, for the upload page to show in place."""
    row = await services.history.get(user, prediction_id)
    return page(request, visit, "_result.html", **await result_context(services, user, row))


@router.post("/predictions/{prediction_id:uuid}/context")
async def change(
    prediction_id: UUID, request: Request, services: ServicesDep, visit: VisitDep, *, user: UserDep, form: FormDep
) -> Response:
    """Say which lesion the image shows, where it is, and anything else."""
    try:
        said = Context.of(form.get("lesion"), form.get("body_site"), form.get("note"))
        await services.history.change(user, prediction_id, said)
    except (RequestInvalid, TooManyLesions) as error:
        row = await services.history.get(user, prediction_id)
        choices = await _choices(services, user)
        return page(request, visit, "result.html", error=error, **choices, **await result_context(services, user, row))
    return RedirectResponse(f"/predictions/{prediction_id}", 303)


@router.post("/predictions/{prediction_id:uuid}/delete")
async def delete(prediction_id: UUID, services: ServicesDep, user: UserDep, form: FormDep) -> Response:
    """Delete a result from the history."""
    del form  # asking for it checks its CSRF token
    await services.history.delete(user, prediction_id)
    return RedirectResponse("/history", 303)


@router.get("/history")
async def history(
    request: Request, services: ServicesDep, visit: VisitDep, user: UserDep, cursor: str | None = None
) -> Response:
    """Results, filtered and sorted as the address says, and what they add up to."""
    wanted = Filter.of(request.query_params)
    found = await services.history.page(user, limit=_PER_PAGE, cursor=cursor or None, wanted=wanted)
    choices = await _choices(services, user)
    if wanted.lesion and wanted.lesion not in {one.id for one in choices["lesions"]}:
        chosen = await services.lesions.names(user, {wanted.lesion})
        choices["lesions"] = [*({"id": key, "name": name} for key, name in chosen.items()), *choices["lesions"]]
    kept = urlencode([(name, value) for name, value in request.query_params.items() if name != "cursor" and value])
    return page(
        request,
        visit,
        "history.html",
        page=found,
        first=cursor is None,
        wanted=wanted,
        filtered=wanted != Filter(sort=wanted.sort),
        query=kept,
        names=await services.lesions.names(user, {row.lesion_id for row in found.items if row.lesion_id}),
        summary=await services.history.summary(user, wanted) if cursor is None else None,
        **choices,
    )


@router.get("/history.csv")
async def history_csv(request: Request, services: ServicesDep, user: UserDep) -> Response:
    """The filtered history, newest first: the contract's CSV, and day and lesion after it."""
    await services.history.exported(user)
    lines = _csv(services, user, Filter.of(request.query_params))
    return await streamed(lines, "dermserve-history.csv", "text/csv")


@router.get("/history.json")
async def history_json(request: Request, services: ServicesDep, user: UserDep) -> Response:
    """The same as JSON, each result as the API gives it."""
    await services.history.exported(user)
    pieces = _json(services, user, Filter.of(request.query_params))
    return await streamed(pieces, "dermserve-history.json", "application/json")


@router.get("/compare")
async def compare(request: Request, services: ServicesDep, visit: VisitDep, user: UserDep) -> Response:
    """Some results side by side, each over the user's own copy of its image."""
    try:
        ids = list(dict.fromkeys(UUID(one) for one in request.query_params.getlist("id")))
    except ValueError as error:
        raise RequestInvalid("Results are named by their ids.") from error
    rows = [await services.history.get(user, one) for one in ids[:_COMPARED]]
    rows.sort(key=lambda row: row.created_at)
    contexts = [await result_context(services, user, row) for row in rows]
    models = len({(row.model_name, row.model_version, row.model_precision) for row in rows})
    return page(request, visit, "compare.html", results=contexts, models=models, chosen=len(ids), most=_COMPARED)


async def _choices(services: Services, user: Caller) -> dict[str, Any]:
    """What the fields about an image offer: of the lesions the newest; a script finds the others as one types."""
    return {
        "lesions": await services.lesions.latest(user, limit=_OFFERED),
        "body_sites": BODY_SITES,
        "lesion_max": NAME_MAX,
        "note_max": NOTE_MAX,
    }


async def result_context(services: Services, user: Caller, row: Prediction) -> dict[str, Any]:
    """What the template of a result shows."""
    diagnoses = zip(labels.LEAVES, row.diagnoses, strict=True)
    names = await services.lesions.names(user, {row.lesion_id} if row.lesion_id else ())
    return {
        "row": row,
        "lesion_name": names.get(row.lesion_id) if row.lesion_id else None,
        "columns": dict(zip((name.lower() for name in labels.COLUMNS), row.probabilities, strict=True)),
        "diagnoses": sorted(((labels.LEAF_NAMES[leaf], value) for leaf, value in diagnoses), key=lambda one: -one[1]),
        "cam": cam_of(row).model_dump(),
        "cam_limit": _cam_limit(services.card),
        "point": _point_of(services.card, row),
        "quality_measured": services.card.quality.measured,
    }


def _point_of(card: ModelCard, row: Prediction) -> OperatingPoint | None:
    """The card's figures for the decision in `row`, or None where the card now speaks of another model."""
    point = card.operating_points.get(row.operating_point)
    same = (card.name, card.version) == (row.model_name, row.model_version)
    return point if point is not None and same and point.threshold == row.threshold else None


def _cam_limit(card: ModelCard) -> float:
    """Where the map's colour scale ends: fixed for a model, so that two images can be compared."""
    limit = card.export.get("cam_limit")
    return float(limit) if isinstance(limit, int | float) and limit > 0 else _CAM_LIMIT


async def _csv(services: Services, user: Caller, wanted: Filter) -> AsyncIterator[str]:
    """CSV text, one piece for the header and the first row, then one a row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([*labels.CSV_HEADER, "analysed_at", "lesion"])
    async for row, names in _with_names(services, user, wanted):
        at = row.created_at.astimezone(UTC).isoformat(timespec="seconds")
        lesion = names.get(row.lesion_id, "") if row.lesion_id else ""
        # An abstained row has no figures: out of their page nothing would say that they mean nothing.
        figures = ("" if row.abstained else f"{value:.6f}" for value in row.probabilities)
        writer.writerow([plain_text(row.filename or str(row.id)), *figures, at, plain_text(lesion)])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    if buffer.tell():
        yield buffer.getvalue()


async def _json(services: Services, user: Caller, wanted: Filter) -> AsyncIterator[str]:
    before = "["
    async for row, names in _with_names(services, user, wanted):
        found = {"filename": row.filename, **Result.of(row, lesions=names).model_dump(mode="json")}
        yield f"{before}\n{json.dumps(found, ensure_ascii=False)}"
        before = ","
    yield "\n]\n" if before == "," else "[]\n"


async def _with_names(
    services: Services, user: Caller, wanted: Filter
) -> AsyncIterator[tuple[Prediction, Mapping[UUID, str]]]:
    """Every result, newest first, with names of lesions by id, its own among them."""
    async for rows in services.history.pages(user, wanted=wanted):
        names = await services.lesions.names(user, {row.lesion_id for row in rows if row.lesion_id})
        for row in rows:
            yield row, names


def plain_text(value: str) -> str:
    """A cell of a CSV; what a spreadsheet would run as a formula is made plain text (OWASP, CSV injection)."""
    return f"'{value}" if value.startswith(_FORMULA) else value
