"""Who may send by DICOM, what they are owed, and the outbox of results on their way."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Identity, Index, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from frontend.models.base import Base


class Sender(Base):
    """A DICOM node that may send: its AE title, the networks that it calls from, and whose results they become.

    `host` and `port` are where it takes reports of storage commitment; None where it waits for them while it is connected.
    """

    __tablename__ = "senders"
    __table_args__ = (UniqueConstraint("ae_title"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    ae_title: Mapped[str]
    networks: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    host: Mapped[str | None]
    port: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Commitment(Base):
    """A DICOM node's request to be told what is safely stored, until it was told (PS3.4 annex J).

    Instance n of the request is `instances[n]`, of class `classes[n]`. A worker moves `due_at` on before it tells.
    """

    __tablename__ = "commitments"
    __table_args__ = (UniqueConstraint("ae_title", "transaction_uid"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    ae_title: Mapped[str]
    transaction_uid: Mapped[str]
    classes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    instances: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Destination(Base):
    """Where the results of an organisation are sent: a DICOM node, a DICOMweb server or a webhook.

    `kind` is one of `outbox.Kind`, `address` a URL, of a DICOM node `dicom://AE_TITLE@host:port`; `secret`, sealed
    (`vault.py`), signs a webhook's messages or is the DICOMweb server's bearer token.
    """

    __tablename__ = "destinations"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    organisation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("organisations.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str]
    address: Mapped[str]
    secret: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Delivery(Base):
    """The outbox: one result on its way to one destination, written in the transaction that stored the result.

    It is done with `delivered_at`, or with `failed_at` once the destination refused it for good; before, it is due
    again at `due_at`, which is infinity for what failed. A worker moves `due_at` on before it sends, so that no two send
    at the same time. `since` is when it was written, or sent again by command: attempts are counted from there.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("prediction_id", "destination_id"),
        # Led by the destination: what waits for one that is down stands in nobody else's way.
        Index("ix_outbox_due", "destination_id", "due_at", postgresql_where=text("delivered_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger(), Identity(), primary_key=True)
    prediction_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("predictions.id", ondelete="CASCADE"))
    destination_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"), index=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    error: Mapped[str | None]
