"""STOW-RS (DICOM PS3.18 §10.5): DICOM objects by HTTP, each answered for itself with the standard's sequences.

No object is kept, so that nothing can be retrieved: the retrieve URLs of the answer are there and empty (PS3.18 annex I,
type 2). What is answered as stored is a committed result under the object's SOP instance UID; a repeat is stored, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import bindparam, exists, select

from dermserve import dicom
from dermserve.errors import (
    BatchTooLarge,
    DatabaseUnavailable,
    DermserveError,
    DicomNotUnderstood,
    Forbidden,
    Overloaded,
    RequestInvalid,
    RequestMalformed,
    RequestTimeout,
    SopClassNotTaken,
    StudyMismatch,
    Unauthenticated,
    UnsupportedImageType,
)
from frontend.access import Caller
from frontend.api import refusals
from frontend.batch import MAX_IMAGES
from frontend.bodies.multipart import Multipart, parameters
from frontend.bodies.pipeline import AT_ONCE, Pipeline
from frontend.bodies.stream import Body
from frontend.database import Statement
from frontend.dependencies import SenderDep, Services, ServicesDep
from frontend.dicom.reception import FRAMES_AT_ONCE, Objects
from frontend.dicom.room import MAX_OBJECT_BYTES
from frontend.dicom.senders import Node
from frontend.dicom.sop_classes import taken
from frontend.models import Destination, Organisation

_KIND: Final = "multipart/related"
_PART: Final = "application/dicom"
_ANSWER: Final = "application/dicom+json"

# Tags of the store instances response (PS3.18 annex I), as DICOM's JSON model (annex F) names them.
_SOP_CLASS, _SOP_INSTANCE = "00081150", "00081155"
_RETRIEVE_URL, _REASON = "00081190", "00081197"
_FAILED, _REFERENCED, _OTHER_FAILURES = "00081198", "00081199", "0008119A"

_ORGANISATION: Final = Statement(
    select(
        Organisation.keeps_patients, exists().where(Destination.organisation_id == Organisation.id).label("reports")
    ).where(Organisation.id == bindparam("id"))
)


class _Named(NamedTuple):
    sop_class: str
    sop_instance: str


class _Outcome(NamedTuple):
    """Of one part. `named` is None where it could not even be told which object it is."""

    named: _Named | None
    error: DermserveError | None


class Store:
    """Stores the objects of one request. `study`: the study instance UID of the address; None where it names none."""

    def __init__(self, services: Services, node: Node, study: str | None) -> None:
        self._services = services
        self._node = node
        self._objects = Objects(
            services.database,
            predictions=services.predictions,
            throttle=services.throttle,
            identifiers=services.identifiers,
        )
        self._study = study
        self._classes = frozenset(taken(services.settings))
        self._several = asyncio.Semaphore(AT_ONCE // FRAMES_AT_ONCE)  # objects with more than one frame under way
        self._named: dict[int, _Named] = {}
        self._outcomes: dict[int, _Outcome] = {}

    async def store(self, parts: Multipart) -> Sequence[_Outcome]:
        """What became of each part, in order; returns when every result is committed or refused.

        Raises:
            BatchTooLarge, RequestMalformed, RequestTimeout: of the body as a whole.
        """
        index = 0
        async with Pipeline(self._services.intake, self._node.caller, limit=MAX_OBJECT_BYTES) as pipeline:
            while (headers := await parts.next_part()) is not None:
                if index == MAX_IMAGES:
                    raise BatchTooLarge(f"At most {MAX_IMAGES:,} objects go into one request.")
                refuse = partial(self._refuse, index)
                if parameters(headers.get("content-type", _PART))[0] == _PART:
                    await pipeline.put(parts.chunks(), partial(self._analyse, index), refuse)
                else:
                    refuse(DicomNotUnderstood(f"The part is not of the type {_PART}."))
                index += 1
        if not index:
            raise RequestMalformed("The request holds no object.")
        return [self._outcomes[one] for one in range(index)]

    async def _analyse(self, index: int, data: bytes) -> None:
        said = await asyncio.to_thread(dicom.identity, data)
        self._named[index] = _Named(said.sop_class, said.sop_instance)
        if said.sop_class not in self._classes:
            raise SopClassNotTaken
        if self._study is not None and said.study != self._study:
            raise StudyMismatch
        opened = await asyncio.to_thread(self._objects.opened, self._node, data)
        await self._objects.check(self._node, opened)
        while frames := await asyncio.to_thread(opened.next_frames):
            async with self._several if opened.count > 1 else nullcontext():
                await self._objects.analyse(self._node, frames)
        self._outcomes[index] = _Outcome(self._named[index], None)

    def _refuse(self, index: int, error: DermserveError) -> None:
        self._services.metrics.refused(error.code)
        self._outcomes[index] = _Outcome(self._named.get(index), error)


def _answer(outcomes: Sequence[_Outcome]) -> Response:
    """The store instances response; its status as table 10.5.1-1 has it.

    Where nothing at all was stored, and for no other reason than that the server is busy, it is 503 instead of 409: it is
    what senders repeat by themselves.
    """
    stored = [_reference(one.named) | {_RETRIEVE_URL: {"vr": "UR"}} for one in outcomes if one.named and not one.error]
    failed = [
        _reference(one.named) | _reason(one.error)
        for one in outcomes
        if one.named is not None and one.error is not None
    ]
    other = [_reason(one.error) for one in outcomes if one.named is None and one.error is not None]
    sequences = {_FAILED: failed, _REFERENCED: stored, _OTHER_FAILURES: other}
    content: dict[str, Any] = {_RETRIEVE_URL: {"vr": "UR"}}
    content |= {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}
    waits = [one.error.retry_after if one.error else None for one in outcomes]
    headers = {}
    if stored:
        status = 202 if failed or other else 200
    elif all(wait is not None for wait in waits):
        status, headers["Retry-After"] = 503, str(max(wait or 0 for wait in waits))
    else:
        status = 409
    return JSONResponse(content, status, headers, media_type=_ANSWER)


def _reference(named: _Named) -> dict[str, Any]:
    return {
        _SOP_CLASS: {"vr": "UI", "Value": [named.sop_class]},
        _SOP_INSTANCE: {"vr": "UI", "Value": [named.sop_instance]},
    }


def _reason(error: DermserveError) -> dict[str, Any]:
    return {_REASON: {"vr": "US", "Value": [error.dicom_status]}}


def _parts(request: Request) -> Multipart:
    kind, said = parameters(request.headers.get("content-type", ""))
    if kind != _KIND or said.get("type", _PART).lower() != _PART:
        raise UnsupportedImageType(f'Only {_KIND}; type="{_PART}" is accepted here.')
    return Multipart(Body(request), said.get("boundary", "").encode("utf-8", "replace"))


async def _node(services: Services, caller: Caller) -> Node:
    """The caller as the DICOM door sees its senders: what their organisation wants kept comes from the same place."""
    rows = await services.database.fetch_each(_ORGANISATION, [{"id": caller.organisation_id}])
    found = rows[0] if rows else {"reports": False, "keeps_patients": False}
    return Node(caller, "", reports=found["reports"], keeps_patients=bool(found["keeps_patients"]))


async def _store(request: Request, caller: Caller, services: Services, study: str | None) -> Response:
    parts = _parts(request)
    with services.intake.batch(caller):
        store = Store(services, await _node(services, caller), study)
        return _answer(await store.store(parts))


_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": f'`{_KIND}; type="{_PART}"`: part 10 files of at most {MAX_OBJECT_BYTES // 2**20} MiB, at most '
    f"{MAX_IMAGES:,} of them.",
    "content": {_KIND: {"schema": {"type": "string", "format": "binary"}}},
}
_SCHEMA: Final = {"content": {_ANSWER: {"schema": {"type": "object"}}}}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = refusals(
    Unauthenticated,
    Forbidden,
    RequestMalformed,
    RequestTimeout,
    BatchTooLarge,
    UnsupportedImageType,
    RequestInvalid,
    Overloaded,
    DatabaseUnavailable,
) | {
    200: _SCHEMA | {"description": "All are stored."},
    202: _SCHEMA | {"description": "Some are stored; the failed SOP sequence names the others."},
    409: _SCHEMA | {"description": "None is stored; the failed SOP sequence says why."},
}
router = APIRouter(prefix="/dicomweb", tags=["DICOMweb"])


@router.post(
    "/studies",
    response_class=Response,
    summary="Store DICOM objects",
    openapi_extra={"requestBody": _BODY},
    responses=_ANSWERS,
)
async def store(request: Request, caller: SenderDep, services: ServicesDep) -> Response:
    """STOW-RS: score DICOM objects and store the results; the objects themselves are not kept.

    An object's SOP instance UID is its idempotency key; sent again, it is stored. Failure reasons are those of C-STORE.
    """
    return await _store(request, caller, services, None)


@router.post(
    "/studies/{study}",
    response_class=Response,
    summary="Store DICOM objects of one study",
    openapi_extra={"requestBody": _BODY},
    responses=_ANSWERS,
)
async def store_study(
    request: Request,
    caller: SenderDep,
    services: ServicesDep,
    study: Annotated[str, Path(description="Study instance UID; objects of another study fail.")],
) -> Response:
    """The same for the objects of one study."""
    if not dicom.is_uid(study):
        raise RequestMalformed("The address names no study instance UID.")
    return await _store(request, caller, services, study)
