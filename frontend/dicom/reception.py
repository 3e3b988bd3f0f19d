"""From the data set of a C-STORE to committed results of all its frames."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
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

_AT_ONCE: Final = 4  # frames of one object: as many as keep the model server busy, and no more in memory


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
        self._database = database
        self._predictions = predictions
        self._throttle = throttle
        self._identifiers = identifiers

    def store(self, node: Node, data: bytes) -> int:
        """Analyse every frame of a part 10 file and commit the results; returns how many frames there are.

        It returns only after the last commit. Frames before one that fails stay stored; sent again, they are repeats.

        Raises:
            ImageError: the object or one of its frames is refused.
            IdempotencyConflict: its SOP instance UID belongs to other bytes.
            RateLimited: the node sent too many images within this minute.
            Unavailable: inference or the database is away or full; the same object may be sent again.
        """
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
        if count > 1:
            self._run(self._check_frames(node, said.sop_instance, count))
        frames = zip(dicom.frames(data), origins, strict=True)
        while group := list(itertools.islice(frames, _AT_ONCE)):
            self._run(self._analyse_all(node, group))
        return count

    async def _check_frames(self, node: Node, sop_instance: str, count: int) -> None:
        """Fewer or more frames under one UID are other bytes, though each frame for itself may be a repeat."""
        query = select(Instance.frames).where(
            Instance.owner_id == node.caller.user_id,
            Instance.sop_instance_uid == sop_instance,
            Instance.frames != count,
        )
        async with self._database.transaction() as session:
            if (await session.scalars(query.limit(1))).first() is not None:
                raise IdempotencyConflict("This SOP instance was stored before with another number of frames.")

    async def _analyse_all(self, node: Node, group: Sequence[tuple[bytes, Origin]]) -> None:
        outcomes = await asyncio.gather(*(self._analyse(node, *one) for one in group), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _analyse(self, node: Node, frame: bytes, origin: Origin) -> None:
        await self._throttle.before_image(node.caller)
        name = origin.sop_instance_uid if origin.frames == 1 else f"{origin.sop_instance_uid}/{origin.frame}"
        await self._predictions.analyse(node.caller, frame, key=f"dicom:{name}", filename=name, origin=origin)
