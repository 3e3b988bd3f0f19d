"""What is kept: organisations, accounts, sessions, keys, lesions, results, the outbox and the audit; never an image."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Names every constraint, so that a later migration can refer to it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True), str: Text(), bytes: LargeBinary()}


class Organisation(Base):
    """A hospital or a practice. Its results are deleted `retention_days` after they were made; None keeps them.

    `keeps_patients`: what DICOM objects say of a patient is kept, sealed, until their report was sent.
    """

    __tablename__ = "organisations"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    retention_days: Mapped[int | None]
    keeps_patients: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class User(Base):
    """A person, or a service: one without a password hash, which can own API keys but never log in.

    `role` is one of `access.Role`. `totp_secret` is sealed (`vault.py`) and counts once `totp_since` is set.
    `issuer` and `subject` name the account at a hospital's sign-on (OpenID Connect Core §2).
    """

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default="clinician")
    organisation_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("organisations.id", ondelete="SET NULL"), index=True
    )
    totp_secret: Mapped[bytes | None]
    totp_since: Mapped[datetime | None]
    totp_last_step: Mapped[int | None] = mapped_column(BigInteger())
    issuer: Mapped[str | None]
    subject: Mapped[str | None]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebSession(Base):
    """A login. Only the SHA-256 of the cookie's token is kept, so that a copy of this table opens nothing.

    `id` names it in the list of sessions, `agent` is how the browser called itself, shortened.
    """

    __tablename__ = "web_sessions"

    token_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4, server_default=text("gen_random_uuid()"))
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    agent: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ApiKey(Base):
    """A machine's key. `hint` is its beginning, enough to recognise it in a list and too little to use.

    `scopes` are of `access.Scope`; without `expires_at` it is good until it is revoked.
    """

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    hint: Mapped[str]
    key_sha256: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default=text("'{predict,read,delete}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class PasswordReset(Base):
    """A mailed link that sets a new password, once. Only the SHA-256 of its token is kept."""

    __tablename__ = "password_resets"

    token_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime]


class AuditEntry(Base):
    """Who did what, in a chain: `hash` covers the row and the hash of the row before (see `audit.py`).

    It holds no name, address, file name or figure: ids, which lead to nobody once an account is deleted. A trigger
    refuses to change or delete rows.
    """

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[uuid.UUID | None] = mapped_column(index=True)
    action: Mapped[str]
    object: Mapped[str]
    hash: Mapped[bytes]


class RateCount(Base):
    """How often something was done in a window of time, over all worker processes and replicas (see `throttle.py`)."""

    __tablename__ = "rate_counts"

    key: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Lesion(Base):
    """One spot on a patient's skin, by the name that its owner gave it; results over time belong to it."""

    __tablename__ = "lesions"
    __table_args__ = (UniqueConstraint("owner_id", "name"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str]
    body_site: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Prediction(Base):
    """One committed result, with everything needed to say how it came about.

    `probabilities` is real [4] in the order of `labels.COLUMNS`, `diagnoses` real [9] in the order of
    `labels.LEAVES`, `cam` real [10, 10] and `region` real [4] (left, top, right, bottom; fractions of the upright
    image). Width and height are in pixels as stored in the file.
    """

    __tablename__ = "predictions"
    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        # Serves "newest first, from this row on" for one owner straight from the index.
        Index("ix_predictions_history", "owner_id", text("created_at DESC"), text("id DESC")),
        # The same with the highest melanoma probability first. The expression is that of `history.py`, with line breaks
        # where PostgreSQL has them when it tells an index, so that Alembic can compare the two.
        Index(
            "ix_predictions_melanoma",
            "owner_id",
            text("(\nCASE\n WHEN abstained THEN '-1'::real\n ELSE probabilities[4]\nEND) DESC"),
            text("id DESC"),
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    idempotency_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    filename: Mapped[str | None]
    lesion_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("lesions.id", ondelete="SET NULL"), index=True)
    body_site: Mapped[str | None]
    note: Mapped[str | None]

    image_sha256: Mapped[bytes]
    image_format: Mapped[str]
    image_width: Mapped[int]
    image_height: Mapped[int]

    probabilities: Mapped[list[float]] = mapped_column(ARRAY(REAL))
    diagnoses: Mapped[list[float]] = mapped_column(ARRAY(REAL))
    cam: Mapped[list[list[float]]] = mapped_column(ARRAY(REAL, dimensions=2))
    region: Mapped[list[float]] = mapped_column(ARRAY(REAL))

    operating_point: Mapped[str]
    threshold: Mapped[float] = mapped_column(Double())
    refer: Mapped[bool]
    quality_flags: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    abstained: Mapped[bool]

    model_name: Mapped[str]
    model_version: Mapped[str]
    model_precision: Mapped[str]
    model_runtime: Mapped[str]
    preprocessing: Mapped[str]


class Instance(Base):
    """The DICOM image that a result is of: one frame of a SOP instance, of which `frames` belong together.

    `patient` is what a report to a hospital's archive says of the patient, sealed (`vault.py`): a pseudonym unless the
    organisation wants it kept as it came, and None where no report will be sent (`dicom/identifiers.py`).
    """

    __tablename__ = "instances"
    __table_args__ = (UniqueConstraint("owner_id", "sop_instance_uid", "frame"),)

    prediction_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    sop_class_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    study_uid: Mapped[str]
    series_uid: Mapped[str]
    frame: Mapped[int]
    frames: Mapped[int]
    patient: Mapped[bytes | None]


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

    `kind` is one of `outbox.Kind`, `address` an AE title with host and port or a URL; `secret`, sealed (`vault.py`),
    signs a webhook's messages or is the DICOMweb server's bearer token.
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
    again at `due_at`. A worker moves `due_at` on before it sends, so that no two send at the same time.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("prediction_id", "destination_id"),
        Index("ix_outbox_due", "due_at", postgresql_where=text("delivered_at IS NULL AND failed_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger(), Identity(), primary_key=True)
    prediction_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("predictions.id", ondelete="CASCADE"))
    destination_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"), index=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    error: Mapped[str | None]
