"""From a DICOM object, as a C-STORE or STOW-RS brings it, to committed results of all its frames."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import select

from dermserve import dicom
from dermserve.errors import DicomNotUnderstood, IdempotencyConflict
from frontend.database import Database
from frontend.dicom.identifiers import Identifiers
from frontend.dicom.senders import Node
from frontend.models import Instance
from frontend.predictions import Predictions
from frontend.storage import Origin
from frontend.throttle import Throttle

Outcome = TypeVar("Outcome")
Run = Callable[[Coroutine[Any, Any, Outcome]], Outcome]

FRAMES_AT_ONCE: Final = 4
"""Frames of one object that are under way: as many as keep the model server busy, and no more in memory."""


class Reception:
    """Stores objects. `run` runs a coroutine in the process's event loop and waits for it; `store` is called in threads."""

    def __init__(
        self,
        run: Run[Any],
        database: Database,
        *,
        predictions: Predictions,
        throttle: Throttle,
        identifiers: Identifiers,
    ) -> None:
        self._run = run
        self._objects = Objects(database, predictions=predictions, throttle=throttle, identifiers=identifiers)

    def store(self, node: Node, data: bytes) -> int:
        """Analyse every frame of a part 10 file and commit the results; returns how many frames there are.

        It returns only after the last commit. Frames before one that fails stay stored; sent again, they are repeats.

        Raises:
            ImageError: the object or one of its frames is refused.
            IdempotencyConflict: its SOP instance UID belongs to other bytes.
            RateLimited: the node sent too many images within this minute.
            Unavailable: inference or the database is away or full; the same object may be sent again.
        """
        opened = self._objects.opened(node, data)
        self._run(self._objects.check(node, opened))
        while group := opened.next_frames():
            self._run(self._objects.analyse(node, group))
        return opened.count


class Opened:
    """An object whose header was read, and its `count` frames with what each is of."""

    def __init__(self, sop_instance: str, count: int, frames: Iterator[tuple[bytes, Origin]]) -> None:
        self.sop_instance = sop_instance
        self.count = count
        self._frames = frames

    def next_frames(self) -> list[tuple[bytes, Origin]]:
        """The next few, copied out of the object; none behind the last."""
        return list(itertools.islice(self._frames, FRAMES_AT_ONCE))


class Objects:
    """What every DICOM door does with an object; errors are those of `Reception.store`."""

    def __init__(
        self, database: Database, *, predictions: Predictions, throttle: Throttle, identifiers: Identifiers
    ) -> None:
        self._database = database
        self._predictions = predictions
        self._throttle = throttle
        self._identifiers = identifiers

    def opened(self, node: Node, data: bytes) -> Opened:
        """Read the header of a part 10 file, and what of its patient is kept; call it in a thread."""
        kept = node.reports and node.caller.organisation_id is not None
        said = dicom.identity(data, with_patient=kept)
        if said.study is None or said.series is None:
            raise DicomNotUnderstood("The study or series instance UID is missing or malformed.")
        count = dicom.number_of_frames(data)
        patient = None
        if said.patient is not None and node.caller.organisation_id is not None:
            patient = self._identifiers.kept(
                said.patient,
                study_uid=said.study,
                organisation=node.caller.organisation_id,
                as_it_came=node.keeps_patients,
            )
        origins = (
            Origin(said.sop_class, said.sop_instance, said.study, said.series, number, count, patient)
            for number in range(1, count + 1)
        )
        return Opened(said.sop_instance, count, zip(dicom.frames(data), origins, strict=True))

    async def check(self, node: Node, opened: Opened) -> None:
        """Fewer or more frames under one UID are other bytes, though each frame for itself may be a repeat."""
        if opened.count == 1:
            return
        query = select(Instance.frames).where(
            Instance.owner_id == node.caller.user_id,
            Instance.sop_instance_uid == opened.sop_instance,
            Instance.frames != opened.count,
        )
        async with self._database.transaction() as session:
            if (await session.scalars(query.limit(1))).first() is not None:
                raise IdempotencyConflict("This SOP instance was stored before with another number of frames.")

    async def analyse(self, node: Node, frames: Sequence[tuple[bytes, Origin]]) -> None:
        """Score frames and commit the results, under the idempotency keys that they have at every door."""
        outcomes = await asyncio.gather(*(self._analyse(node, *one) for one in frames), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _analyse(self, node: Node, frame: bytes, origin: Origin) -> None:
        await self._throttle.before_image(node.caller)
        name = origin.sop_instance_uid if origin.frames == 1 else f"{origin.sop_instance_uid}/{origin.frame}"
        await self._predictions.analyse(node.caller, frame, key=f"dicom:{name}", filename=name, origin=origin)
