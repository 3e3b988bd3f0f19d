"""Organisations, accounts, sessions, keys, limits and the audit."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from frontend.models.base import Base


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
