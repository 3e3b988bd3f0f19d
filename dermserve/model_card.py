"""The model card: everything that is known about the weights, written once and read by API, pages and reports.

File: `model_repository/classifier/1/model_card.json`. Training and export write it, everybody else only reads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermserve.errors import StartupError

CARD_PATH = Path("classifier/1/model_card.json")
ONNX_PATH = Path("classifier/1/model.onnx")
INT8_PATH = Path("classifier/1/model.int8.xml")
_DIGEST_BYTES: Final = 5  # among 60,000 training images, a new one is taken for one of them once in 18 million


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


class LeafResults(_Part):
    """The nine leaves of one data set, the most probable one taken as the answer.

    `confusion[i][j]` counts images of leaf i taken for leaf j, in the order of `labels.LEAVES`; `recall` is by leaf,
    for leaves that have images.
    """

    confusion: list[list[int]]
    balanced_accuracy: Estimate
    recall: dict[str, Estimate]


class Evaluation(_Part):
    """What was measured on one data set besides `ModelCard.metrics`.

    Args:
        role: what the images were to the weights, in words.
        operating_points: what the card's thresholds reach on these images.
        leaves: None where only melanoma or not is known.
        subgroups: kind (`sex`, `age`, `site`) → subgroup → figure.
        not_measured: what, and why, in words.
    """

    role: str
    operating_points: dict[str, OperatingPoint] = {}
    leaves: LeafResults | None = None
    subgroups: dict[str, dict[str, dict[str, Estimate]]] = {}
    not_measured: list[str] = []


class SeenImages(_Part):
    """Digests of the ids of all images that the weights were trained on, and fixed on: base64, 5 bytes each, sorted.

    Ids may be names of a clinic's files: digests give them away only to who can guess them.
    """

    train: str
    validation: str

    @classmethod
    def of(cls, train: Iterable[str], validation: Iterable[str]) -> SeenImages:
        """From the image ids."""
        return cls(train=_pack(train), validation=_pack(validation))

    @property
    def fixed_count(self) -> int:
        """How many images temperature and thresholds were fixed on."""
        return len(_unpack(self.validation))

    def trained_on(self, names: Iterable[str]) -> list[str]:
        """Those of the image ids that the weights were trained on."""
        return _among(names, self.train)

    def fixed_on(self, names: Iterable[str]) -> list[str]:
        """Those of the image ids on which temperature and thresholds were fixed."""
        return _among(names, self.validation)


def image_id(name: str) -> str:
    """An official id without the `_downsampled` that copies of ISIC 2019 circulate with and without."""
    return name.removesuffix("_downsampled")


def _digest(name: str) -> bytes:
    return hashlib.sha256(image_id(name).encode()).digest()[:_DIGEST_BYTES]


def _pack(names: Iterable[str]) -> str:
    return base64.b64encode(b"".join(sorted({_digest(name) for name in names}))).decode()


def _among(names: Iterable[str], packed: str) -> list[str]:
    digests = _unpack(packed)
    return [name for name in names if _digest(name) in digests]


def _unpack(packed: str) -> set[bytes]:
    try:
        known = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise StartupError(f"The model card's list of seen images is damaged: {error}.") from error
    return {known[start : start + _DIGEST_BYTES] for start in range(0, len(known), _DIGEST_BYTES)}


class Parity(_Part):
    """Differences of an engine's answers from its reference's on the same images.

    Probabilities are 0…1. `rank_agreement` is Spearman's correlation of P(melanoma). Where the images have labels, the
    changes of ROC-AUC and of each operating point's sensitivity and specificity (engine − reference, 0…1) are told; where
    the card has an abstention threshold, the share of images on its other side.
    """

    images: int
    source: str
    largest: float
    mean: float
    largest_cam: float
    rank_agreement: float | None = None
    auc: float | None = None
    auc_change: float | None = None
    sensitivity_change: dict[str, float] = {}
    specificity_change: dict[str, float] = {}
    abstention_change: float | None = None


class EngineRecord(_Part):
    """What an export made of the ONNX file for one target, and how it passed the parity gate.

    `sha256` is the file's; `weights_sha256` that of the OpenVINO IR's second file. `refused` says why the precision that
    was tried first was not taken, and holds its parity in `tried`.
    """

    precision: str
    sha256: str
    weights_sha256: str | None = None
    parity: dict[str, Parity] = {}
    made_with: str = ""
    refused: str = ""
    tried: dict[str, Parity] = {}


class ModelCard(_Part):
    """One trained model. `metrics` maps a data set to a metric's name to its estimate; the page /about shows them.

    `evaluations` has the same keys where more was measured; `measured` says with what. `seen` is None for weights that
    kept no list of their images.
    """

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
    calibration_bias: dict[str, float] = Field(
        {}, description="What is added to each leaf's logit after the division by the temperature; inside the graph."
    )
    operating_points: dict[str, OperatingPoint]
    metrics: dict[str, dict[str, Estimate]]
    evaluations: dict[str, Evaluation] = {}
    measured: str = ""
    seen: SeenImages | None = None
    training: dict[str, Any]
    data: list[dict[str, Any]]
    limits: list[str]
    quality: Measured = Measured()
    ood: Measured = Measured()
    export: dict[str, Any] = {}
    engines: dict[str, EngineRecord] = Field({}, description="By target of `dermserve export`.")

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
