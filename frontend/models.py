"""What is kept: accounts, sessions, API keys and results. An image is never among it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from sqlalchemy import (
    ARRAY,
    REAL,
    DateTime,
    Double,
    ForeignKey,
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


class User(Base):
    """A person, or a service: one without a password hash, which can own API keys but never log in."""

    __tablename__ = "users"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]
    is_admin: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebSession(Base):
    """A login. Only the SHA-256 of the cookie's token is kept, so that a copy of this table opens nothing."""

    __tablename__ = "web_sessions"

    token_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ApiKey(Base):
    """A machine's key. `hint` is its beginning, enough to recognise it in a list and too little to use."""

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    hint: Mapped[str]
    key_sha256: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


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
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    idempotency_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    filename: Mapped[str | None]

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
