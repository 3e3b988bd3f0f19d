"""What reports are made from: a stored result, the image that it is of, whose it is and what computed it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from dermserve import labels
from dermserve.model_card import CARD_PATH, ModelCard
from frontend.models import Instance, Prediction

MANUFACTURER: Final = "dermserve"
_DATE: Final = re.compile(r"\d{8}")
_TIME: Final = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_SEXES: Final = ("M", "F", "O")
_TEXT_MAX: Final = 64  # characters of DICOM's VR LO and of a component of PN (PS3.5 §6.2)


@dataclass(frozen=True)
class Patient:
    """What a report says of the patient and the study, in DICOM's spelling; "" is unknown."""

    patient_id: str
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    accession_number: str = ""
    study_id: str = ""
    study_date: str = ""
    study_time: str = ""
    referring_physician: str = ""

    @classmethod
    def of(cls, said: Mapping[str, object]) -> Patient:
        """From what an object says, by this class's names; others are passed over.

        What DICOM has no room for is left out: an archive would refuse the whole report for a date that is none.
        """
        found = {field.name: _text(said.get(field.name)) for field in fields(cls)}
        for name, pattern in (("birth_date", _DATE), ("study_date", _DATE), ("study_time", _TIME)):
            found[name] = found[name] if pattern.fullmatch(found[name]) else ""
        for name, most in (("accession_number", 16), ("study_id", 16)):
            found[name] = found[name] if len(found[name]) <= most else ""
        found["sex"] = found["sex"] if found["sex"] in _SEXES else ""
        return cls(**found)


@dataclass(frozen=True)
class Card:
    """The served model card: which version it is of, and the SHA-256 of its file."""

    name: str
    version: str
    weights_sha256: str
    sha256: str

    @classmethod
    def read(cls, repository: Path) -> Card:
        """Of a model repository.

        Raises:
            StartupError: there is no valid card.
        """
        card = ModelCard.read(repository)
        digest = hashlib.sha256((repository / CARD_PATH).read_bytes()).hexdigest()
        return cls(card.name, card.version, card.weights_sha256, digest)


@dataclass(frozen=True)
class Facts:
    """One result, as it is reported. `instance` and `patient` are None where the image was no DICOM object."""

    prediction: Prediction
    card: Card
    instance: Instance | None = None
    patient: Patient | None = None

    @property
    def parameters(self) -> list[str]:
        """What the algorithm ran with, `name=value`; the card's hash only where that card is still the result's."""
        row, card = self.prediction, self.card
        same = (row.model_name, row.model_version) == (card.name, card.version)
        hashes = [f"model_card_sha256={card.sha256}", f"weights_sha256={card.weights_sha256}"] if same else []
        return [
            *hashes,
            f"preprocessing={row.preprocessing}",
            f"precision={row.model_precision}",
            f"runtime={row.model_runtime}",
            f"operating_point={row.operating_point}",
        ]

    @property
    def melanoma(self) -> float:
        """P(melanoma), 0…1."""
        return self.prediction.probabilities[labels.COLUMNS.index("Melanoma")]

    @property
    def leading(self) -> str:
        """The leaf with the highest probability, of `labels.LEAVES`."""
        diagnoses = self.prediction.diagnoses
        return labels.LEAVES[max(range(len(diagnoses)), key=diagnoses.__getitem__)]


def _text(value: object) -> str:
    text = " ".join(str(value if value is not None else "").split()).replace("\\", "")
    return text if text.isprintable() and len(text) <= _TEXT_MAX else ""
