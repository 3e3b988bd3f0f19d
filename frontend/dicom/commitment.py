"""Storage commitment, push model (PS3.4 annex J): what a node asked for is kept until it was told what is stored.

A request is committed before it is acknowledged, so that an acknowledged one outlives any restart; a report is made from
what the database holds when it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from pydicom.dataset import Dataset
from sqlalchemy import ARRAY, Text, any_, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from dermserve.dicom import is_uid
from dermserve.errors import RequestInvalid
from frontend.database import Database
from frontend.dicom.senders import Node
from frontend.models import Commitment, Instance, Sender

SOP_CLASS: Final = "1.2.840.10008.1.20.1"
SOP_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST: Final = 1
"""The action type (PS3.4 table J.3.2-1)."""

_ALL_STORED: Final = 1  # event types, PS3.4 table J.3.3-1
_SOME_FAILED: Final = 2
_NO_SUCH_INSTANCE: Final = 0x0112
_CLASS_CONFLICT: Final = 0x0119
_FIRST_PAUSE: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(minutes=15)
_KEPT: Final = timedelta(days=1)


@dataclass(frozen=True)
class Request:
    """What a node wants to know: of each instance its SOP class and instance UID."""

    transaction_uid: str
    references: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, information: Dataset) -> Request:
        """Read the action information.

        Raises:
            RequestInvalid: the transaction UID or a reference is missing or malformed.
        """
        items = information.get("ReferencedSOPSequence") or ()
        references = [
            (str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", "")))
            for item in items
        ]
        transaction = str(information.get("TransactionUID", ""))
        if not references or not all(map(is_uid, (transaction, *(uid for pair in references for uid in pair)))):
            raise RequestInvalid("The transaction UID or a referenced instance is missing or malformed.")
        return cls(transaction, tuple(dict.fromkeys(references)))


class Report(NamedTuple):
    """What an N-EVENT-REPORT carries."""

    commitment_id: UUID
    event_type: int
    information: Dataset


class Due(NamedTuple):
    """A report that is to be sent over a new association."""

    commitment_id: UUID
    ae_title: str
    address: tuple[str, int]


class Commitments:
    """Requests in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(self, node: Node, request: Request, *, wait: timedelta) -> UUID:
        """Keep a request; the same transaction sent again is the same one. It is due after `wait`."""
        values = {
            "id": uuid4(),
            "owner_id": node.caller.user_id,
            "ae_title": node.ae_title,
            "transaction_uid": request.transaction_uid,
            "classes": [sop_class for sop_class, _ in request.references],
            "instances": [instance for _, instance in request.references],
            "due_at": func.now() + wait,
        }
        again = {name: value for name, value in values.items() if name not in ("id", "ae_title", "transaction_uid")}
        again |= {"attempts": 0, "created_at": func.now()}
        query = (
            insert(Commitment)
            .values(**values)
            .on_conflict_do_update(index_elements=["ae_title", "transaction_uid"], set_=again)
            .returning(Commitment.id)
        )
        async with self._database.transaction() as session:
            return (await session.execute(query)).scalar_one()

    async def report(self, commitment_id: UUID) -> Report | None:
        """What is to be told now; None where it was told already."""
        async with self._database.transaction() as session:
            row = await session.get(Commitment, commitment_id)
            if row is None:
                return None
            wanted = bindparam("wanted", row.instances, type_=ARRAY(Text()))
            query = (
                select(Instance.sop_instance_uid, Instance.sop_class_uid)
                .where(Instance.owner_id == row.owner_id, Instance.sop_instance_uid == any_(wanted))
                .group_by(Instance.sop_instance_uid, Instance.sop_class_uid)
                .having(func.count() == func.max(Instance.frames))
            )
            stored = {row.sop_instance_uid: row.sop_class_uid for row in (await session.execute(query)).all()}
        return _report(row, stored)

    async def due(self, *, limit: int = 10) -> Sequence[Due]:
        """Take reports to nodes whose address is known; each is due again later, so that no two processes send it at once."""
        pause = func.least(_LONGEST_PAUSE, _FIRST_PAUSE * func.power(2, func.least(Commitment.attempts, 10)))
        address = (Sender.ae_title == Commitment.ae_title) & (Sender.owner_id == Commitment.owner_id)
        ready = (
            select(Commitment.id)
            .join(Sender, address & Sender.host.is_not(None))
            .where(Commitment.due_at <= func.now())
            .order_by(Commitment.due_at)
            .limit(limit)
            .with_for_update(of=Commitment, skip_locked=True)
        )
        taken = (
            update(Commitment)
            .where(Commitment.id.in_(ready.scalar_subquery()), address)
            .values(due_at=func.now() + pause, attempts=Commitment.attempts + 1)
            .returning(Commitment.id, Commitment.ae_title, Sender.host, Sender.port)
        )
        async with self._database.transaction() as session:
            rows = (await session.execute(taken, execution_options={"synchronize_session": False})).all()
        return [Due(row.id, row.ae_title, (row.host, row.port)) for row in rows]

    async def waiting(self, node: Node) -> Sequence[UUID]:
        """Reports that a node without an address is still owed, oldest first."""
        query = (
            select(Commitment.id)
            .where(Commitment.ae_title == node.ae_title, Commitment.owner_id == node.caller.user_id)
            .order_by(Commitment.created_at)
            .limit(20)
        )
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def told(self, commitment_id: UUID) -> None:
        """Forget a request whose report was received."""
        async with self._database.transaction() as session:
            await session.execute(delete(Commitment).where(Commitment.id == commitment_id))

    async def give_up(self) -> Sequence[tuple[str, datetime]]:
        """Forget requests that could not be answered for a day; returns AE titles and when they asked."""
        query = delete(Commitment).where(Commitment.created_at < func.now() - _KEPT)
        async with self._database.transaction() as session:
            rows = (await session.execute(query.returning(Commitment.ae_title, Commitment.created_at))).all()
        return [(row.ae_title, row.created_at) for row in rows]


def _report(row: Commitment, stored: dict[str, str]) -> Report:
    committed, failed = [], []
    for sop_class, instance in zip(row.classes, row.instances, strict=True):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        if stored.get(instance) == sop_class:
            committed.append(item)
        else:
            item.FailureReason = _CLASS_CONFLICT if instance in stored else _NO_SUCH_INSTANCE
            failed.append(item)
    information = Dataset()
    information.TransactionUID = row.transaction_uid
    if committed:
        information.ReferencedSOPSequence = committed
    if failed:
        information.FailedSOPSequence = failed
    return Report(row.id, _SOME_FAILED if failed else _ALL_STORED, information)
