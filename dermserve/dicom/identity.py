"""Which instance an object is, without reading a pixel; and whose, only when that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes

from dermserve.dicom import part10
from dermserve.dicom.elements import DataSet, Element
from dermserve.dicom.part10 import is_uid, text
from dermserve.errors import DicomNotUnderstood, ImageError, ImageTooLarge, SopClassMismatch

_CHARACTERS: Final = 0x00080005
_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_MODALITY: Final = 0x00080060
_REGION: Final = 0x00082218
_MEANING: Final = 0x00080104
_NAME: Final = 0x00100010
_ID: Final = 0x00100020
_BIRTH_DATE: Final = 0x00100030
_SEX: Final = 0x00100040
_BODY_PART: Final = 0x00180015
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_LATERALITY: Final = 0x00200060
_IMAGE_LATERALITY: Final = 0x00200062
_FRAMES: Final = 0x00280008

_WANTED: Final = frozenset({
    _CHARACTERS, _SOP_CLASS, _SOP_INSTANCE, _MODALITY, _REGION, _BODY_PART, _STUDY, _SERIES, _LATERALITY, _IMAGE_LATERALITY,
    _FRAMES,
})  # fmt: skip
_PATIENT: Final = frozenset({_NAME, _ID, _BIRTH_DATE, _SEX})

_LAST: Final = 0x0028FFFF

_LONGEST: Final = 1_024
"""Bytes of a value that are looked at; the longest, a person's name, has 3 × 64 characters (PS3.5 §6.2)."""


@dataclass(frozen=True)
class Patient:
    """Who it is, as the object says it: a name in DICOM's form (`Family^Given`), a date as YYYYMMDD. Empty where missing."""

    id: str
    name: str
    birth_date: str
    sex: str


@dataclass(frozen=True)
class Identity:
    """What an object says of itself.

    `study` and `series` are None where they are missing or no UIDs; `laterality` (R, L, U, B), `body_part` (the body part
    examined, else the meaning of the anatomic region's code) and `modality` are empty where missing. `frames` is None where
    it is no number. `patient` is None unless it was asked for.
    """

    sop_class: str
    sop_instance: str
    study: str | None
    series: str | None
    modality: str
    frames: int | None
    laterality: str
    body_part: str
    patient: Patient | None = field(default=None, repr=False)  # a log of this says nothing of anybody


def identity(data: bytes, *, with_patient: bool = False) -> Identity:
    """Read the identity of a part 10 file; the walk ends where the pixel attributes do.

    Raises:
        DicomNotUnderstood: the file cannot be read, or SOP class or instance UID is missing or malformed.
        SopClassMismatch: the data set is not of the class that its file meta information, or a C-STORE, names.
        ImageTooLarge: a deflated data set grows beyond its bound.
    """
    try:
        source = part10.read(data)
        wanted = _WANTED | _PATIENT if with_patient else _WANTED
        values = _Texts(source.dataset, source.dataset.find(wanted, last=_LAST))
        return _identity(source, values, with_patient=with_patient)
    except (DicomNotUnderstood, ImageTooLarge):
        raise
    except ImageError as error:
        raise DicomNotUnderstood(error.detail) from error
    except Exception as error:
        raise DicomNotUnderstood("The DICOM header is damaged.") from error


class _Texts:
    """Values as text. Only names of people and places are in the object's own character set (PS3.5 §6.1.2.3)."""

    def __init__(self, dataset: DataSet, found: dict[int, Element]) -> None:
        self._dataset = dataset
        self._found = found
        self._encodings: list[str] | None = None

    def plain(self, tag: int) -> str:
        return text(self._raw(self._found, tag))

    def own(self, tag: int) -> str:
        return self._own(self._raw(self._found, tag))

    def region(self) -> str:
        """Meaning of the first code of the anatomic region sequence (PS3.3 §10.5)."""
        if _REGION in self._found:
            for span in self._dataset.items(self._found[_REGION]):
                return self._own(self._raw(self._dataset.find({_MEANING}, span), _MEANING))
        return ""

    def _own(self, raw: bytes) -> str:
        if self._encodings is None:
            names = self.plain(_CHARACTERS)
            self._encodings = convert_encodings(names.split("\\")) if names else ["iso8859"]
        return decode_bytes(raw, self._encodings, {0x5E, 0x3D, 0x5C}).strip(
            "\x00 "
        )  # PS3.5 §6.1.2.5.3: ^, = and \ reset

    def _raw(self, found: dict[int, Element], tag: int) -> bytes:
        element = found.get(tag)
        return (
            b"" if element is None else self._dataset.data[element.start : min(element.end, element.start + _LONGEST)]
        )


def _identity(source: part10.File, values: _Texts, *, with_patient: bool) -> Identity:
    sop_class, sop_instance = values.plain(_SOP_CLASS), values.plain(_SOP_INSTANCE)
    for name, uid in (("SOP class", sop_class), ("SOP instance", sop_instance)):
        if not is_uid(uid):
            raise DicomNotUnderstood(f"The {name} UID is missing or malformed.")
    if source.sop_class and source.sop_class != sop_class:
        raise SopClassMismatch("The data set is of another SOP class than announced.")
    if source.sop_instance and source.sop_instance != sop_instance:
        raise DicomNotUnderstood("The data set is another SOP instance than announced.")
    study, series, frames = values.plain(_STUDY), values.plain(_SERIES), values.plain(_FRAMES) or "1"
    patient = None
    if with_patient:
        patient = Patient(values.own(_ID), values.own(_NAME), values.plain(_BIRTH_DATE), values.plain(_SEX))
    return Identity(
        sop_class=sop_class,
        sop_instance=sop_instance,
        study=study if is_uid(study) else None,
        series=series if is_uid(series) else None,
        modality=values.plain(_MODALITY),
        frames=int(frames) if frames.isascii() and frames.isdecimal() and len(frames) <= 12 else None,
        laterality=values.plain(_IMAGE_LATERALITY) or values.plain(_LATERALITY),
        body_part=values.plain(_BODY_PART) or values.region(),
        patient=patient,
    )
