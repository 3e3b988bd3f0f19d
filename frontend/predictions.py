"""From image bytes to a committed result.

Every door calls `Predictions.analyse`; it returns only after the result's row is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

import asyncpg
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert

from dermserve import image, labels
from dermserve.errors import DermserveError, IdempotencyConflict, InferenceUnavailable, Unauthenticated
from dermserve.model_card import ModelCard
from frontend.access import Caller
from frontend.context import Context
from frontend.database import Database, Statement
from frontend.grouped import Grouped
from frontend.lesions import Lesions, Named
from frontend.metrics import Metrics
from frontend.models import Prediction
from frontend.ownership import visible_to

_NO_CONTEXT: Final = Context()
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


class Predictions:
    """Analysis. `operating_point` names the point of the card that decides on referral."""

    def __init__(
        self,
        database: Database,
        inference: Inference,
        card: ModelCard,
        *,
        operating_point: str,
        metrics: Metrics,
        lesions: Lesions,
    ) -> None:
        self._database = database
        self._lesions = lesions
        self._inference = inference
        self._card = card
        self._point_name = operating_point
        self._point = card.operating_point(operating_point)
        self._metrics = metrics
        self._runtime: tuple[float, tuple[str, str]] | None = None
        self._find_in_group = Grouped(self._find_each)
        self._store_in_group = Grouped(self._store_each)

    async def analyse(
        self,
        caller: Caller,
        data: bytes,
        *,
        key: str | None = None,
        filename: str | None = None,
        context: Context = _NO_CONTEXT,
    ) -> Analysed:
        """Score one image and commit the result; a repeat of the same key and bytes returns the stored one.

        Args:
            caller: becomes the owner; a machine's images queue behind those of people.
            data: an encoded JPEG, PNG or DICOM object. It is never written anywhere.
            key: idempotency key, unique per owner; by default the SHA-256 of `data`.
            filename: a cleaned name for people to recognise the result by.
            context: what the sender says about the image; of a repeat it changes nothing.

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
        named = await self._lesion(caller, context)
        row: dict[str, object] = {
            "id": uuid4(),
            "owner_id": caller.user_id,
            "idempotency_key": key,
            "filename": filename,
            "lesion_id": named.id if named else None,
            "body_site": context.body_site,
            "note": context.note,
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
        try:
            analysed = await self._store(caller, key, digest, row, context)
        except DermserveError:
            await self._withdraw(caller, named)
            raise
        if not analysed.created:
            await self._withdraw(caller, named)
        if analysed.created:
            self._metrics.predicted(refer=analysed.prediction.refer, abstained=analysed.prediction.abstained)
        return analysed

    async def _lesion(self, caller: Caller, context: Context) -> Named | None:
        return await self._lesions.ensure(caller, context.lesion, context.body_site) if context.lesion else None

    async def _withdraw(self, caller: Caller, named: Named | None) -> None:
        if named is not None and named.made:
            await self._lesions.withdraw(caller, named.id)

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

    async def _store(
        self, caller: Caller, key: str, digest: bytes, row: dict[str, object], context: Context
    ) -> Analysed:
        again, remade = True, None
        while True:
            try:
                created_at = await self._store_in_group(row)
            except asyncpg.ForeignKeyViolationError as error:
                if row["lesion_id"] is None:
                    raise Unauthenticated("This account was deleted.") from error
                # The lesion was deleted meanwhile: it is made once more, and the result is not lost if it goes again.
                remade = await self._lesion(caller, context) if again else None
                row, again = row | {"lesion_id": remade.id if remade else None}, False
                continue
            if created_at is not None:
                return Analysed(Prediction(**row, created_at=created_at), created=True)
            # Somebody else sent the same key meanwhile; unless that row was deleted since, it is the answer.
            stored = await self._find(caller, key, digest)
            if stored is not None:
                await self._withdraw(caller, remade)
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


_COLUMNS: Final = Prediction.__table__.columns
_FIND: Final = Statement(
    select(*_COLUMNS).where(
        Prediction.idempotency_key == bindparam("idempotency_key"), visible_to(Prediction, bindparam("owner_id"))
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
