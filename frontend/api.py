"""The JSON API: `/v1/predictions`."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from dermserve.errors import (
    DatabaseUnavailable,
    DermserveError,
    Forbidden,
    IdempotencyConflict,
    ImageEmpty,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    InferenceUnavailable,
    NotFound,
    Overloaded,
    RateLimited,
    RequestInvalid,
    RequestTimeout,
    TooManyLesions,
    Unauthenticated,
    UnsupportedImageType,
)
from frontend import problems
from frontend.access import Caller
from frontend.context import BODY_SITES, Context
from frontend.dependencies import EditorDep, ReaderDep, SenderDep, Services, ServicesDep
from frontend.history import Decided, Filter
from frontend.models import Prediction
from frontend.schemas import ImageContext, Result, ResultPage
from frontend.upload import RAW_TYPES, read_small, receive

_KEY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "The encoded image, either as the body itself or as the part `file` of a form.",
    "content": dict.fromkeys((*RAW_TYPES, "application/octet-stream"), _BINARY)
    | {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        }
    },
}


def refusals(*errors: type[DermserveError]) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI states which problems a route may answer with, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        stated = f"{error.title} (`{error.code}`)"
        if error.http_status in responses:
            responses[error.http_status]["description"] += f"; {stated}"
        else:
            content = {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
            responses[error.http_status] = {"description": stated, "content": content}
    return responses


class BoundedRoute(APIRoute):
    """Bounds JSON bodies: FastAPI reads one to its end, however long, before it asks who sends it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:  # images are read, and bounded, by the route itself
            return answer

        async def bounded(request: Request) -> Response:
            body = await read_small(request)

            async def receive() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            return await answer(Request(request.scope, receive))

        return bounded


router = APIRouter(
    prefix="/v1",
    route_class=BoundedRoute,
    tags=["predictions"],
    responses=refusals(Unauthenticated, RateLimited, RequestInvalid, Overloaded, DatabaseUnavailable),
)
_NOT_FOUND = refusals(NotFound, Forbidden)
NOT_TAKEN = refusals(
    Forbidden,
    RequestTimeout,
    IdempotencyConflict,
    TooManyLesions,
    ImageTooLarge,
    UnsupportedImageType,
    ImageUndecodable,
    ImageEmpty,
    ImageTooSmall,
    RequestInvalid,
    Overloaded,
    InferenceUnavailable,
    DatabaseUnavailable,
)
WithCam = Annotated[bool, Query(description="Include the class activation map.")]


@router.post(
    "/predictions",
    status_code=201,
    response_model=Result,
    summary="Analyse one image",
    openapi_extra={"requestBody": _BODY},
    response_description="A new result.",
    responses={200: {"model": Result, "description": "A repeat: the stored result."}, **NOT_TAKEN},
)
async def create(
    request: Request,
    *,
    caller: SenderDep,
    services: ServicesDep,
    cam: WithCam = False,
    idempotency_key: Annotated[
        str | None, Header(description="At most 255 printable ASCII characters; default: SHA-256 of the bytes.")
    ] = None,
) -> Response:
    """Score an image and store the result. A 2xx means that it is committed.

    The same key with the same bytes returns the stored result with status 200, so a sender that saw no answer just
    sends again. The image itself is not kept.
    """
    key = checked_key(idempotency_key)
    await services.throttle.before_image(caller)
    async with receive(request, services.intake, caller) as upload:
        prediction, created = await services.predictions.analyse(
            caller, upload.data, key=key, filename=upload.filename, context=upload.context
        )
        lesions = await lesions_of(services, caller, [prediction])
    # Written here: FastAPI would check the result's every field a second time.
    return Response(
        Result.of(prediction, cam=cam, lesions=lesions).model_dump_json(),
        status_code=201 if created else 200,
        headers={"Location": f"/v1/predictions/{prediction.id}"},
        media_type="application/json",
    )


@router.get(
    "/predictions",
    summary="List results, newest first",
    response_description="A page of results.",
    responses=refusals(Forbidden),
)
async def list_page(
    caller: ReaderDep,
    services: ServicesDep,
    *,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    search: Annotated[str, Query(max_length=100, description="In file name, note or lesion.")] = "",
    since: Annotated[date | None, Query(description="Day in UTC, included.")] = None,
    until: Annotated[date | None, Query(description="Day in UTC, included.")] = None,
    lesion: Annotated[UUID | None, Query(description="Id of a lesion.")] = None,
    body_site: Annotated[Literal[BODY_SITES] | None, Query()] = None,  # type: ignore[valid-type]
    decision: Annotated[Decided | None, Query()] = None,
) -> ResultPage:
    """Your results, newest first. New results never shift what a cursor continues."""
    wanted = Filter(search.replace("\0", ""), since, until, lesion, body_site, decision)
    page = await services.history.page(caller, limit=limit, cursor=cursor, wanted=wanted)
    lesions = await lesions_of(services, caller, page.items)
    return ResultPage(items=[Result.of(row, lesions=lesions) for row in page.items], next_cursor=page.next_cursor)


@router.get(
    "/predictions/{prediction_id:uuid}", summary="One result", response_description="The result.", responses=_NOT_FOUND
)
async def read(prediction_id: UUID, caller: ReaderDep, services: ServicesDep, cam: WithCam = False) -> Result:
    """One of your results; anybody else's does not exist for you."""
    row = await services.history.get(caller, prediction_id)
    return Result.of(row, cam=cam, lesions=await lesions_of(services, caller, [row]))


@router.patch(
    "/predictions/{prediction_id:uuid}",
    summary="Say what the image is of",
    response_description="The result as it is now.",
    responses=_NOT_FOUND | refusals(TooManyLesions),
)
async def change(prediction_id: UUID, said: ImageContext, caller: EditorDep, services: ServicesDep) -> Result:
    """Replace lesion, body site and note; what is left out is emptied. A new name of a lesion makes the lesion."""
    await services.history.change(caller, prediction_id, Context.of(said.lesion, said.body_site, said.note))
    row = await services.history.get(caller, prediction_id)
    return Result.of(row, lesions=await lesions_of(services, caller, [row]))


@router.delete(
    "/predictions/{prediction_id:uuid}",
    status_code=204,
    summary="Delete a result",
    response_description="It is gone.",
    responses=_NOT_FOUND,
)
async def delete(prediction_id: UUID, caller: EditorDep, services: ServicesDep) -> None:
    """Delete one of your results for good. The same image sent again makes a new one."""
    await services.history.delete(caller, prediction_id)


async def lesions_of(services: Services, caller: Caller, rows: Sequence[Prediction]) -> Mapping[UUID, str]:
    """Names of the lesions that results belong to, by id."""
    return await services.lesions.names(caller, {row.lesion_id for row in rows if row.lesion_id is not None})


def checked_key(key: str | None) -> str | None:
    """An idempotency key as it came.

    Raises:
        RequestInvalid: it is empty, too long or not printable.
    """
    if key is not None and not _KEY.fullmatch(key):
        raise RequestInvalid("An Idempotency-Key has 1 to 255 printable ASCII characters.")
    return key
