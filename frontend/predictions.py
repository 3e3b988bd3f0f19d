"""From image bytes to a committed result, and back out of the history.

Every door calls `Predictions.analyse`; it returns only after the result's row is committed. Every access to a stored
result goes through `_visible_to`, the one place that says who may see what.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, ColumnElement, bindparam, delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from dermserve import image, labels
from dermserve.errors import IdempotencyConflict, InferenceUnavailable, NotFound, RequestInvalid
from dermserve.model_card import ModelCard
from frontend.accounts import Caller
from frontend.database import Database, Statement
from frontend.grouped import Grouped
from frontend.metrics import Metrics
from frontend.models import Prediction

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR: Final = struct.Struct(">q16s")
_MICROSECOND: Final = timedelta(microseconds=1)
_INLINE_BYTES: Final = 256 * 1024  # hashing more than this takes long enough to be worth a thread
_RUNTIME_S: Final = 10.0

_OwnKey = tuple[UUID, str]  # owner and idempotency key


class Inference(Protocol):
    """What is needed of `dermserve.client.AsyncTritonClient`."""

    async def infer(
        self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False
    ) -> dict[str, NDArray[np.float32]]: ...

    async def ready(self) -> bool: ...

    async def runtime(self) -> tuple[str, str]: ...

    async def close(self) -> None: ...


class Analysed(NamedTuple):
    """`created` is False where the same key and bytes had been analysed before."""

    prediction: Prediction
    created: bool


@dataclass(frozen=True)
class Page:
    """Results newest first, and the cursor of the next page or None on the last one."""

    items: Sequence[Prediction]
    next_cursor: str | None


class Predictions:
    """Analysis and history. `operating_point` names the point of the card that decides on referral."""

    def __init__(
        self, database: Database, inference: Inference, card: ModelCard, operating_point: str, metrics: Metrics
    ) -> None:
        self._database = database
        self._inference = inference
        self._card = card
        self._point_name = operating_point
        self._point = card.operating_point(operating_point)
        self._metrics = metrics
        self._runtime: tuple[float, tuple[str, str]] | None = None
        self._find_in_group = Grouped(self._find_each)
        self._store_in_group = Grouped(self._store_each)

    async def analyse(
        self, caller: Caller, data: bytes, *, key: str | None = None, filename: str | None = None
    ) -> Analysed:
        """Score one image and commit the result; a repeat of the same key and bytes returns the stored one.

        Args:
            caller: becomes the owner; a machine's images queue behind those of people.
            data: an encoded JPEG, PNG or DICOM object. It is never written anywhere.
            key: idempotency key, unique per owner; by default the SHA-256 of `data`.
            filename: a cleaned name for people to recognise the result by.

        Raises:
            ImageError: the image is refused.
            IdempotencyConflict: the key belongs to other bytes.
            Unavailable: inference or the database is away or full; nothing was stored as far as is known, and the
                same request may be sent again.
        """
        header, digest = await _examine(data)
        key = key or digest.hex()
        stored = await self._find(caller, key, digest)
        if stored is not None:
            return Analysed(stored, created=False)
        outputs = await self._infer(data, bulk=caller.machine)
        runtime, precision = await self._runtime_and_precision()
        probabilities = outputs["probabilities"][0]
        row: dict[str, object] = {
            "id": uuid4(),
            "owner_id": caller.user_id,
            "idempotency_key": key,
            "filename": filename,
            "image_sha256": digest,
            "image_format": header.format,
            "image_width": header.width,
            "image_height": header.height,
            "probabilities": probabilities.tolist(),
            "diagnoses": outputs["diagnoses"][0].tolist(),
            "cam": outputs["cam"][0].tolist(),
            "region": outputs["region"][0].tolist(),
            "operating_point": self._point_name,
            "threshold": self._point.threshold,
            "refer": bool(probabilities[labels.COLUMNS.index("Melanoma")] >= self._point.threshold),
            "quality_flags": self._flags(outputs),
            "abstained": self._abstained(outputs),
            "model_name": self._card.name,
            "model_version": self._card.version,
            "model_precision": precision,
            "model_runtime": runtime,
            "preprocessing": self._card.preprocessing,
        }
        analysed = await self._store(caller, key, digest, row)
        if analysed.created:
            self._metrics.predicted(refer=analysed.prediction.refer, abstained=analysed.prediction.abstained)
        return analysed

    async def get(self, caller: Caller, prediction_id: UUID) -> Prediction:
        """One result.

        Raises:
            NotFound: there is none that this caller may see.
        """
        query = select(Prediction).where(Prediction.id == prediction_id, _visible_to(caller.user_id))
        async with self._database.transaction() as session:
            found = await session.scalar(query)
        if found is None:
            raise NotFound("There is no such result.")
        return found

    async def delete(self, caller: Caller, prediction_id: UUID) -> None:
        """Delete one result for good; the same image sent again makes a new one.

        Raises:
            NotFound: there is none that this caller may see.
        """
        query = delete(Prediction).where(Prediction.id == prediction_id, _visible_to(caller.user_id))
        async with self._database.transaction() as session:
            if await session.scalar(query.returning(Prediction.id)) is None:
                raise NotFound("There is no such result.")

    async def page(self, caller: Caller, *, limit: int, cursor: str | None = None) -> Page:
        """Results newest first. What is inserted while someone pages comes before the first page and shifts nothing.

        Raises:
            RequestInvalid: `cursor` is not one that an earlier page gave.
        """
        query = select(Prediction).where(_visible_to(caller.user_id))
        if cursor is not None:
            query = query.where(tuple_(Prediction.created_at, Prediction.id) < tuple_(*_read_cursor(cursor)))
        query = query.order_by(Prediction.created_at.desc(), Prediction.id.desc()).limit(limit + 1)
        async with self._database.transaction() as session:
            rows = (await session.scalars(query)).all()
        items = rows[:limit]
        return Page(items, _write_cursor(items[-1]) if len(rows) > limit else None)

    async def all(self, caller: Caller, *, step: int = 500) -> AsyncIterator[Prediction]:
        """Every result newest first, fetched in pages, so that memory does not grow with the history."""
        cursor: str | None = None
        while True:
            page = await self.page(caller, limit=step, cursor=cursor)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def close(self) -> None:
        """Return when every result under way is committed or refused."""
        await self._find_in_group.drain()
        await self._store_in_group.drain()

    async def _find(self, caller: Caller, key: str, digest: bytes) -> Prediction | None:
        found = await self._find_in_group((caller.user_id, key))
        if found is not None and found["image_sha256"] != digest:
            raise IdempotencyConflict("This Idempotency-Key was used before with another image.")
        return Prediction(**found) if found is not None else None

    async def _find_each(self, wanted: Sequence[_OwnKey]) -> Sequence[Mapping[str, Any] | None]:
        values = [{"owner_id": owner, "idempotency_key": key} for owner, key in set(wanted)]
        rows = await self._database.fetch_each(_FIND, values)
        found = {(row["owner_id"], row["idempotency_key"]): row for row in rows}
        return [found.get(one) for one in wanted]

    async def _store(self, caller: Caller, key: str, digest: bytes, row: dict[str, object]) -> Analysed:
        while True:
            created_at = await self._store_in_group(row)
            if created_at is not None:
                return Analysed(Prediction(**row, created_at=created_at), created=True)
            # Somebody else sent the same key meanwhile; unless that row was deleted since, it is the answer.
            stored = await self._find(caller, key, digest)
            if stored is not None:
                return Analysed(stored, created=False)

    async def _store_each(self, rows: Sequence[dict[str, object]]) -> Sequence[datetime | None]:
        """When each row was stored; None where its key was there already."""
        # In one order everywhere: two processes that store the same keys crosswise would wait for each other for good.
        ordered = sorted(rows, key=lambda row: (str(row["owner_id"]), str(row["idempotency_key"])))
        stored = {row["id"]: row["created_at"] for row in await self._database.fetch_each(_STORE, ordered)}
        return [stored.get(row["id"]) for row in rows]

    async def _infer(self, data: bytes, *, bulk: bool) -> dict[str, NDArray[np.float32]]:
        wanted = ["probabilities", "diagnoses", "cam", "region"]
        wanted += ["quality"] if self._card.quality.measured else []
        wanted += ["ood"] if self._card.ood.measured else []
        started = time.perf_counter()
        try:
            outputs = await self._inference.infer([data], wanted, bulk=bulk)
        except InferenceUnavailable:
            self._runtime = None  # what comes back may be another server
            raise
        self._metrics.inferred(time.perf_counter() - started)
        return outputs

    async def _runtime_and_precision(self) -> tuple[str, str]:
        if self._runtime is None or time.monotonic() - self._runtime[0] > _RUNTIME_S:
            runtime, precision = await self._inference.runtime()
            self._runtime = (time.monotonic(), (runtime, precision))
        return self._runtime[1]

    def _flags(self, outputs: dict[str, NDArray[np.float32]]) -> list[str]:
        if not self._card.quality.measured:
            return []
        thresholds = self._card.quality.thresholds
        flags = zip(labels.QUALITY_FLAGS, outputs["quality"][0].tolist(), strict=True)
        return [name for name, value in flags if value >= thresholds.get(name, 1.1)]

    def _abstained(self, outputs: dict[str, NDArray[np.float32]]) -> bool:
        if not self._card.ood.measured:
            return False
        return bool(outputs["ood"][0, 0] > self._card.ood.thresholds["ood"])


def _visible_to(owner: UUID | BindParameter[UUID]) -> ColumnElement[bool]:
    """Which results a user may see, list and delete: their own."""
    return Prediction.owner_id == owner


_COLUMNS: Final = Prediction.__table__.columns
_FIND: Final = Statement(
    select(*_COLUMNS).where(
        Prediction.idempotency_key == bindparam("idempotency_key"), _visible_to(bindparam("owner_id"))
    )
)
_STORE: Final = Statement(
    insert(Prediction)
    .values({column.name: bindparam(column.name) for column in _COLUMNS if column.name != "created_at"})
    .on_conflict_do_nothing()
    .returning(Prediction.id, Prediction.created_at)
)


async def _examine(data: bytes) -> tuple[image.Header, bytes]:
    if len(data) <= _INLINE_BYTES:
        return _header_and_digest(data)
    return await asyncio.to_thread(_header_and_digest, data)


def _header_and_digest(data: bytes) -> tuple[image.Header, bytes]:
    return image.inspect(data), hashlib.sha256(data).digest()


def _write_cursor(last: Prediction) -> str:
    microseconds = (last.created_at - _EPOCH) // _MICROSECOND
    return base64.urlsafe_b64encode(_CURSOR.pack(microseconds, last.id.bytes)).decode()


def _read_cursor(cursor: str) -> tuple[datetime, UUID]:
    try:
        microseconds, raw_id = _CURSOR.unpack(base64.urlsafe_b64decode(cursor.encode()))
        return _EPOCH + timedelta(microseconds=microseconds), UUID(bytes=raw_id)
    except (binascii.Error, struct.error, ValueError, OverflowError) as error:
        raise RequestInvalid("This cursor is not valid; start again without one.") from error
