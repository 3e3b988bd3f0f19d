"""The model card: everything that is known about the weights, written once and read by API, pages and reports.

File: `model_repository/classifier/1/model_card.json`. Training and export write it, everybody else only reads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermserve.errors import StartupError

CARD_PATH = Path("classifier/1/model_card.json")
ONNX_PATH = Path("classifier/1/model.onnx")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Estimate(_Part):
    """A figure with its 95 % interval (bootstrap over groups) and the number of images and positives behind it."""

    value: float
    low: float
    high: float
    images: int
    positives: int


class OperatingPoint(_Part):
    """Refer when P(melanoma) ≥ `threshold`. `data` names the images on which the threshold and figures were fixed."""

    threshold: float = Field(ge=0, le=1)
    sensitivity: Estimate
    specificity: Estimate
    data: str


class Measured(_Part):
    """Whether a Triton output holds real values (`quality`, `ood`) or zeros, and the thresholds that apply.

    A flag is raised when its value reaches its threshold; an image is abstained on when `ood` exceeds its own.
    """

    measured: bool = False
    thresholds: dict[str, float] = {}
    note: str = ""


class ModelCard(_Part):
    """One trained model. `metrics` maps a data set to a metric's name to its estimate; the page /about shows them."""

    name: str
    version: str
    created_at: str
    architecture: str
    leaves: list[str]
    input_size: int
    preprocessing: str = Field(description="`image.preprocessing_hash()` of the code that trained the weights.")
    remove_artifacts: bool = Field(False, description="Hair is painted over before the network sees the image.")
    weights_sha256: str = Field(description="SHA-256 of the exported ONNX file.")
    temperature: float = Field(gt=0)
    operating_points: dict[str, OperatingPoint]
    metrics: dict[str, dict[str, Estimate]]
    training: dict[str, Any]
    data: list[dict[str, Any]]
    limits: list[str]
    quality: Measured = Measured()
    ood: Measured = Measured()
    export: dict[str, Any] = {}

    @classmethod
    def read(cls, repository: Path) -> ModelCard:
        """Read the card of a model repository.

        Raises:
            StartupError: the file is missing or not a valid card.
        """
        path = repository / CARD_PATH
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise StartupError(f"There is no model card at {path}: run `dermserve export` first.") from error
        except ValidationError as error:
            raise StartupError(f"The model card {path} is not valid: {error}") from error

    def write(self, repository: Path) -> Path:
        """Write the card into a model repository; returns its path."""
        path = repository / CARD_PATH
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n")
        partial.replace(path)
        return path

    def operating_point(self, name: str) -> OperatingPoint:
        """The named operating point.

        Raises:
            StartupError: the card has no such point.
        """
        if name not in self.operating_points:
            known = ", ".join(sorted(self.operating_points))
            raise StartupError(f"The model card has no operating point {name!r}; it has: {known}.")
        return self.operating_points[name]


def sha256(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
