"""Results into the database and back, by idempotency key; what waits at the same time shares a transaction.

With a result, in its transaction and in the same statement, go the DICOM instance that it is of and the outbox's rows for
the destinations of its owner's organisation: there is no moment in which one of them exists without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import Text, bindparam, cast, insert, literal_column, or_, select
from sqlalchemy.dialects import postgresql

from dermserve.errors import IdempotencyConflict, Unauthenticated
from frontend.database import Database, Statement
from frontend.grouped import Grouped
from frontend.models import Delivery, Destination, Instance, Prediction, User
from frontend.ownership import visible_to

_OwnKey = tuple[UUID, str]  # owner and idempotency key


@dataclass(frozen=True)
class Origin:
    """The DICOM image that a result is of; every field of `models.Instance` but whose it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame: int = 1
    frames: int = 1
    patient: bytes | None = None


_NOWHERE: Final[Mapping[str, None]] = dict.fromkeys(Origin.__dataclass_fields__)


class LesionGone(Exception):
    """The lesion that a result is said to be of is not there any more."""


class Stored(NamedTuple):
    """`created` is False where the same key and bytes had been stored before."""

    prediction: Prediction
    created: bool


class Storage:
    """Finds and stores results."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._find_in_group = Grouped(self._find_each)
        self._store_in_group = Grouped(self._store_each)

    async def find(self, owner: UUID, key: str, digest: bytes) -> Prediction | None:
        """What is stored under an owner's idempotency key.

        Raises:
            IdempotencyConflict: it is the result of other bytes than those of this SHA-256.
        """
        found = await self._find_in_group((owner, key))
        if found is not None and found["image_sha256"] != digest:
            raise IdempotencyConflict("This Idempotency-Key was used before with another image.")
        return Prediction(**found) if found is not None else None

    async def store(self, row: Mapping[str, Any], origin: Origin | None) -> Stored:
        """Commit a result with all that belongs to it; returns the stored one where the key is taken already.

        Args:
            row: every column of `models.Prediction` but `created_at`.
            origin: the DICOM image that it is of.

        Raises:
            IdempotencyConflict: the key belongs to other bytes.
            Unauthenticated: the owner was deleted meanwhile.
            LesionGone: its lesion was, or the owner with it.
        """
        while True:
            try:
                created_at = await self._store_in_group({**row, **(asdict(origin) if origin else _NOWHERE)})
            except asyncpg.UniqueViolationError as error:  # the frame of an instance that had other frames before
                raise IdempotencyConflict(
                    "This SOP instance was stored before with another number of frames."
                ) from error
            except asyncpg.ForeignKeyViolationError as error:
                if row["lesion_id"] is None:
                    raise Unauthenticated("This account was deleted.") from error
                raise LesionGone from error
            if created_at is not None:
                return Stored(Prediction(**row, created_at=created_at), created=True)
            # Somebody else sent the same key meanwhile; unless that row was deleted since, it is the answer.
            found = await self.find(row["owner_id"], row["idempotency_key"], row["image_sha256"])
            if found is not None:
                return Stored(found, created=False)

    async def drain(self) -> None:
        """Return when everything that was taken on is committed or refused."""
        await self._find_in_group.drain()
        await self._store_in_group.drain()

    async def _find_each(self, wanted: Sequence[_OwnKey]) -> Sequence[Mapping[str, Any] | None]:
        values = [{"owner_id": owner, "idempotency_key": key} for owner, key in set(wanted)]
        rows = await self._database.fetch_each(_FIND, values)
        found = {(row["owner_id"], row["idempotency_key"]): row for row in rows}
        return [found.get(one) for one in wanted]

    async def _store_each(self, rows: Sequence[dict[str, object]]) -> Sequence[datetime | None]:
        """When each row was stored; None where its key was there already."""
        # In one order everywhere: two processes that store the same keys crosswise would wait for each other for good.
        ordered = sorted(rows, key=lambda row: (str(row["owner_id"]), str(row["idempotency_key"])))
        stored = {row["id"]: row["created_at"] for row in await self._database.fetch_each(_STORE, ordered)}
        return [stored.get(row["id"]) for row in rows]


_COLUMNS: Final = Prediction.__table__.columns
_FIND: Final = Statement(
    select(*_COLUMNS).where(
        Prediction.idempotency_key == bindparam("idempotency_key"), visible_to(Prediction, bindparam("owner_id"))
    )
)


def _store() -> Statement:
    result = (
        postgresql.insert(Prediction)
        .values({column.name: bindparam(column.name) for column in _COLUMNS if column.name != "created_at"})
        .on_conflict_do_nothing()
        .returning(Prediction.id, Prediction.owner_id, Prediction.created_at)
        .cte("result")
    )
    instance = Instance.__table__.columns
    of_dicom = cast(bindparam("sop_instance_uid"), Text).is_not(None)
    origin = (bindparam(name, type_=instance[name].type) for name in _NOWHERE)
    with_instance = (
        insert(Instance)
        .from_select(
            ["prediction_id", "owner_id", *_NOWHERE], select(result.c.id, result.c.owner_id, *origin).where(of_dicom)
        )
        .cte("instance")
    )
    # A report refers to a DICOM image, so that only a webhook has a use for the result of any other.
    destination = (
        select(result.c.id, Destination.id)
        .join(User, User.id == result.c.owner_id)
        .join(Destination, Destination.organisation_id == User.organisation_id)
        .where(or_(of_dicom, Destination.kind.in_([literal_column("'webhook'"), literal_column("'fhir'")])))
        # One that is being removed is left out, instead of failing the result that would refer to it.
        .with_for_update(read=True, key_share=True, of=Destination)
    )
    with_deliveries = insert(Delivery).from_select(["prediction_id", "destination_id"], destination).cte("delivery")
    return Statement(select(result.c.id, result.c.created_at).add_cte(with_instance, with_deliveries))


_STORE: Final = _store()
