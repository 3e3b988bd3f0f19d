"""Results, the lesions and the DICOM images that they are of; never an image."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ARRAY, REAL, Double, ForeignKey, Index, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from frontend.models.base import Base


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
