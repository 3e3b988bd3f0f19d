"""The JSON bodies of the API, as the contract and `/openapi.json` state them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from dermserve import labels
from frontend.models import Prediction
from frontend.problems import Problem

_NONE: Final[Mapping[UUID, str]] = {}


class ImageFacts(BaseModel):
    """What is kept about the image: no pixel, but enough to recognise it."""

    sha256: str = Field(description="SHA-256 of the bytes as sent, hex.")
    width: int = Field(description="Pixels, as stored in the file.")
    height: int = Field(description="Pixels, as stored in the file.")
    format: Literal["jpeg", "png", "dicom"]


class Probabilities(BaseModel):
    """Benign + suspicious + malignant = 1; melanoma is a part of malignant."""

    benign: float
    suspicious: float
    malignant: float
    melanoma: float


class Diagnoses(BaseModel):
    """Probabilities of the nine leaf diagnoses; they sum to 1."""

    MEL: float
    NV: float
    BCC: float
    AK: float
    BKL: float
    DF: float
    VASC: float
    SCC: float
    BENIGN_NOS: float


class Decision(BaseModel):
    """`refer` is true when the probability of melanoma reaches the threshold; void where `quality.abstained` is true."""

    operating_point: str
    threshold: float
    refer: bool


class Quality(BaseModel):
    """Empty and false while the model card says that quality is not measured."""

    flags: list[str] = Field(
        description="Any of `blurry`, `hairy`, `marker_pen`, `color_tint`: what about the photograph can shift the score."
    )
    abstained: bool = Field(
        description="The image does not look like a dermoscopy photograph: `probabilities` and `decision` mean nothing."
    )


class Model(BaseModel):
    """What computed the result."""

    name: str
    version: str
    precision: str
    runtime: str
    preprocessing: str = Field(description="Hash that pins how the image was prepared.")


class Cam(BaseModel):
    """Melanoma class activation map, row by row, and the part of the upright image that it covers."""

    shape: list[int]
    values: list[list[float]]
    region: list[float] = Field(description="left, top, right, bottom as fractions of the upright image.")


class ImageContext(BaseModel):
    """What the sender said about the image, or somebody later; every member may be null."""

    lesion: str | None = Field(None, description="Name of the lesion.")
    body_site: str | None = Field(None, description="One of the ISIC Archive's general anatomic sites.")
    note: str | None = None


class Result(BaseModel):
    """One committed result."""

    id: UUID
    created_at: datetime
    image: ImageFacts
    probabilities: Probabilities
    diagnoses: Diagnoses
    decision: Decision
    quality: Quality
    model: Model
    context: ImageContext | None = Field(
        None, description="Only where something was said about the image.", exclude_if=lambda context: context is None
    )
    cam: Cam | None = Field(None, description="Only with `?cam=true`.", exclude_if=lambda cam: cam is None)

    @classmethod
    def of(cls, row: Prediction, *, cam: bool = False, lesions: Mapping[UUID, str] = _NONE) -> Result:
        """The API's view of a stored result; `lesions` are the names by id."""
        columns = (column.lower() for column in labels.COLUMNS)
        return cls(
            id=row.id,
            created_at=row.created_at,
            image=ImageFacts.model_validate(
                {
                    "sha256": row.image_sha256.hex(),
                    "width": row.image_width,
                    "height": row.image_height,
                    "format": row.image_format,
                }
            ),
            probabilities=Probabilities(**dict(zip(columns, map(plain, row.probabilities), strict=True))),
            diagnoses=Diagnoses(**dict(zip(labels.LEAVES, map(plain, row.diagnoses), strict=True))),
            decision=Decision(operating_point=row.operating_point, threshold=row.threshold, refer=row.refer),
            quality=Quality(flags=row.quality_flags, abstained=row.abstained),
            model=Model(
                name=row.model_name,
                version=row.model_version,
                precision=row.model_precision,
                runtime=row.model_runtime,
                preprocessing=row.preprocessing,
            ),
            context=_context_of(row, lesions),
            cam=cam_of(row) if cam else None,
        )


class ResultPage(BaseModel):
    """Results newest first; `next_cursor` is null on the last page."""

    items: list[Result]
    next_cursor: str | None


class BatchItem(BaseModel):
    """One image of a batch: what the single door would have answered."""

    index: int = Field(description="Place in the request, from 0.")
    filename: str | None
    status: int = Field(description="201 new, 200 repeat, else that of the problem.")
    result: Result | None = Field(
        None, description="Where the status is 200 or 201.", exclude_if=lambda one: one is None
    )
    problem: Problem | None = Field(None, description="Where it is another.", exclude_if=lambda one: one is None)
    retry_after: int | None = Field(
        None, description="Seconds after which the image may be sent again.", exclude_if=lambda one: one is None
    )


class BatchResult(BaseModel):
    """The images of a batch, in the order in which they were sent."""

    items: list[BatchItem]


def _context_of(row: Prediction, lesions: Mapping[UUID, str]) -> ImageContext | None:
    lesion = lesions.get(row.lesion_id) if row.lesion_id is not None else None
    if lesion is None and row.body_site is None and row.note is None:
        return None
    return ImageContext(lesion=lesion, body_site=row.body_site, note=row.note)


def cam_of(row: Prediction) -> Cam:
    """The activation map of a stored result."""
    values = [[plain(value) for value in line] for line in row.cam]
    return Cam(shape=[len(values), len(values[0])], values=values, region=[plain(edge) for edge in row.region])


def plain(value: float) -> float:
    """A 32-bit value with the seven digits it has, not the seventeen of its 64-bit neighbour."""
    return float(f"{value:.7g}")
