"""From image bytes to a committed result.

Every door calls `Predictions.analyse`; it returns only after the result's row is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from typing import Final, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from dermserve import image, labels
from dermserve.errors import DermserveError, InferenceUnavailable
from dermserve.model_card import ModelCard
from frontend.access import Caller
from frontend.context import Context
from frontend.database import Database
from frontend.lesions import Lesions, Named
from frontend.metrics import Metrics
from frontend.storage import LesionGone, Origin, Storage, Stored

_NO_CONTEXT: Final = Context()
_INLINE_BYTES: Final = 256 * 1024  # hashing more than this takes long enough to be worth a thread
_RUNTIME_S: Final = 10.0


class Inference(Protocol):
    """What is needed of `dermserve.client.AsyncTritonClient`."""

    async def infer(
        self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False
    ) -> dict[str, NDArray[np.float32]]: ...

    async def ready(self) -> bool: ...

    async def runtime(self) -> tuple[str, str]: ...

    async def close(self) -> None: ...


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
        self._storage = Storage(database)
        self._lesions = lesions
        self._inference = inference
        self._card = card
        self._point_name = operating_point
        self._point = card.operating_point(operating_point)
        self._metrics = metrics
        self._runtime: tuple[float, tuple[str, str]] | None = None

    async def analyse(
        self,
        caller: Caller,
        data: bytes,
        *,
        key: str | None = None,
        filename: str | None = None,
        context: Context = _NO_CONTEXT,
        origin: Origin | None = None,
    ) -> Stored:
        """Score one image and commit the result; a repeat of the same key and bytes returns the stored one.

        Args:
            caller: becomes the owner; a machine's images queue behind those of people.
            data: an encoded JPEG, PNG or DICOM object. It is never written anywhere.
            key: idempotency key, unique per owner; by default the SHA-256 of `data`.
            filename: a cleaned name for people to recognise the result by.
            context: what the sender says about the image; of a repeat it changes nothing.
            origin: the DICOM image that the bytes are of.

        Raises:
            ImageError: the image is refused.
            IdempotencyConflict: the key belongs to other bytes.
            Unavailable: inference or the database is away or full; nothing was stored as far as is known, and the
                same request may be sent again.
        """
        header, digest = await _examine(data)
        key = key or digest.hex()
        known = await self._storage.find(caller.user_id, key, digest)
        if known is not None:
            return Stored(known, created=False)
        outputs = await self._infer(data, bulk=caller.machine)
        runtime, precision = await self._runtime_and_precision()
        probabilities = outputs["probabilities"][0]
        row: dict[str, object] = {
            "id": uuid4(),
            "owner_id": caller.user_id,
            "idempotency_key": key,
            "filename": filename,
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
        stored = await self._store(caller, row, origin, context)
        if stored.created:
            self._metrics.predicted(refer=stored.prediction.refer, abstained=stored.prediction.abstained)
        return stored

    async def _store(self, caller: Caller, row: dict[str, object], origin: Origin | None, context: Context) -> Stored:
        """Store a result with the lesion that it is said to be of, which is made for it where there is none."""
        for lesion_wanted in (True, True, False):  # deleted meanwhile it is made once more; then the result comes first
            named = await self._lesion(caller, context) if lesion_wanted else None
            try:
                stored = await self._storage.store(row | {"lesion_id": named.id if named else None}, origin)
            except LesionGone:
                continue
            except DermserveError:
                await self._withdraw(caller, named)
                raise
            if not stored.created:
                await self._withdraw(caller, named)
            return stored
        raise AssertionError("a result without a lesion misses none")

    async def _lesion(self, caller: Caller, context: Context) -> Named | None:
        return await self._lesions.ensure(caller, context.lesion, context.body_site) if context.lesion else None

    async def _withdraw(self, caller: Caller, named: Named | None) -> None:
        if named is not None and named.made:
            await self._lesions.withdraw(caller, named.id)

    async def close(self) -> None:
        """Return when every result under way is committed or refused."""
        await self._storage.drain()

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


async def _examine(data: bytes) -> tuple[image.Header, bytes]:
    if len(data) <= _INLINE_BYTES:
        return _header_and_digest(data)
    return await asyncio.to_thread(_header_and_digest, data)


def _header_and_digest(data: bytes) -> tuple[image.Header, bytes]:
    return image.inspect(data), hashlib.sha256(data).digest()
