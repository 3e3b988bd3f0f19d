"""`POST /v1/predictions/batch`: many images in one request, each with the answer that the single door would have given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from fastapi import APIRouter, Request, Response

from dermserve.errors import (
    BatchTooLarge,
    DermserveError,
    Forbidden,
    ImageEmpty,
    Overloaded,
    RequestInvalid,
    RequestMalformed,
    RequestTimeout,
    Unauthenticated,
    UnsupportedImageType,
)
from frontend import problems
from frontend.access import Caller
from frontend.api import WithCam, checked_key, lesions_of, refusals
from frontend.bodies.archive import Archive
from frontend.bodies.multipart import Multipart, parameters
from frontend.bodies.pipeline import Pipeline
from frontend.bodies.stream import Body
from frontend.context import Context
from frontend.dependencies import SenderDep, Services, ServicesDep
from frontend.schemas import BatchItem, BatchResult, Result
from frontend.upload import context_of, display_name, filename_of

MAX_IMAGES: Final = 1000
_OTHER_PARTS_MAX: Final = 1000  # fields of a form that are no files
_FORM: Final = "multipart/form-data"
_ZIP: Final = ("application/zip", "application/x-zip-compressed")
_BINARY: Final = {"type": "string", "format": "binary"}
_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": (
        f"At most {MAX_IMAGES:,} images, as parts `file` of a form or as a ZIP archive. A part may have the headers "
        "`Idempotency-Key`, `X-Lesion`, `X-Body-Site` and `X-Note` of its own."
    ),
    "content": {
        _FORM: {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}},
        _ZIP[0]: {"schema": _BINARY},
    },
}


@dataclass(frozen=True)
class Sent:
    """What a sender says of one image before its bytes."""

    filename: str | None
    key: str | None = None
    context: Context = field(default_factory=Context)
    problem: DermserveError | None = None


class Images(Protocol):
    """Images of a body: `next_image`, then `chunks`, until `next_image` returns None."""

    async def next_image(self) -> Sent | None: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


class _OfForm:
    def __init__(self, body: Body, boundary: str) -> None:
        self._parts = Multipart(body, boundary.encode("utf-8", "replace"))
        self._others = 0
        self.chunks = self._parts.chunks

    async def next_image(self) -> Sent | None:
        while (headers := await self._parts.next_part()) is not None:
            _, said = parameters(headers.get("content-disposition", ""))
            if said.get("name") == "file":
                return _sent(headers, said.get("filename"))
            self._others += 1
            if self._others > _OTHER_PARTS_MAX:
                raise BatchTooLarge(f"The form has more than {_OTHER_PARTS_MAX:,} parts that are no files.")
        return None


class _OfArchive:
    def __init__(self, body: Body) -> None:
        self._archive = Archive(body)
        self.chunks = self._archive.chunks

    async def next_image(self) -> Sent | None:
        name = await self._archive.next_entry()
        return None if name is None else Sent(display_name(name))


class Batch:
    """Scores the images of one request while later ones are still coming."""

    def __init__(self, services: Services, caller: Caller, *, cam: bool) -> None:
        self._services = services
        self._caller = caller
        self._cam = cam
        self._items: dict[int, str] = {}

    async def score(self, images: Images) -> list[str]:
        """The items of `BatchResult` as JSON, in order; returns when every result is committed or refused.

        Raises:
            BatchTooLarge, RequestMalformed, RequestTimeout: of the body as a whole.
            ImageEmpty: it has no image.
        """
        index = 0
        async with Pipeline(self._services.intake, self._caller) as pipeline:
            while (sent := await images.next_image()) is not None:
                if index == MAX_IMAGES:
                    raise BatchTooLarge(f"At most {MAX_IMAGES:,} images go into one request.")
                refuse = partial(self._refuse, index, sent)
                if sent.problem is not None:
                    refuse(sent.problem)
                else:
                    await pipeline.put(images.chunks(), partial(self._analyse, index, sent), refuse)
                index += 1
        if not index:
            raise ImageEmpty
        return [self._items[one] for one in range(index)]

    async def _analyse(self, index: int, sent: Sent, data: bytes) -> None:
        if not data:
            raise ImageEmpty
        await self._services.throttle.before_image(self._caller)
        prediction, created = await self._services.predictions.analyse(
            self._caller, data, key=sent.key, filename=sent.filename, context=sent.context
        )
        lesions = await lesions_of(self._services, self._caller, [prediction])
        result = Result.of(prediction, cam=self._cam, lesions=lesions)
        self._note(BatchItem(index=index, filename=sent.filename, status=201 if created else 200, result=result))

    def _refuse(self, index: int, sent: Sent, error: DermserveError) -> None:
        self._services.metrics.refused(error.code)
        problem, status = problems.document(error), error.http_status
        self._note(
            BatchItem(
                index=index, filename=sent.filename, status=status, problem=problem, retry_after=error.retry_after
            )
        )

    def _note(self, item: BatchItem) -> None:
        self._items[item.index] = item.model_dump_json()


def _sent(headers: Mapping[str, str], filename: str | None) -> Sent:
    name = display_name(filename or "") or filename_of(headers)
    try:
        return Sent(name, checked_key(headers.get("idempotency-key")), context_of(headers))
    except RequestInvalid as error:
        return Sent(name, problem=error)


def _images(request: Request) -> Images:
    kind, said = parameters(request.headers.get("content-type", ""))
    if kind == _FORM:
        return _OfForm(Body(request), said.get("boundary", ""))
    if kind in _ZIP:
        return _OfArchive(Body(request))
    raise UnsupportedImageType(f"A body of type {kind[:80]!r} is not accepted; send {_FORM} or {_ZIP[0]}.")


router = APIRouter(prefix="/v1", tags=["predictions"])


@router.post(
    "/predictions/batch",
    response_model=BatchResult,
    summary="Analyse many images",
    openapi_extra={"requestBody": _BODY},
    response_description="Every image with its own status, in the order in which they were sent.",
    responses=refusals(
        Unauthenticated,
        Forbidden,
        RequestMalformed,
        RequestTimeout,
        BatchTooLarge,
        UnsupportedImageType,
        ImageEmpty,
        RequestInvalid,
        Overloaded,
    ),
)
async def create(request: Request, caller: SenderDep, services: ServicesDep, *, cam: WithCam = False) -> Response:
    """Score many images and store their results; every one is committed, or refused, before the answer.

    Each has the status and the body that it would have got alone; a bad one changes nothing for the others. Images are
    scored while later ones still come. Where the request fails as a whole, some may be stored: send it again, and they are
    repeats.
    """
    with services.intake.batch(caller):
        items = await Batch(services, caller, cam=cam).score(_images(request))
    # Joined here: what the items say was checked when they were made.
    return Response('{"items":[' + ",".join(items) + "]}", media_type="application/json")
