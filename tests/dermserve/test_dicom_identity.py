"""What an object says of itself, and the file that a C-STORE is made into."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dermserve import dicom, image
from dermserve.errors import DicomNotUnderstood, ImageError, ImageTooLarge, SopClassMismatch
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, coded, waves
from tests.dermserve.encoded import dicom as make

SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit,
]  # fmt: skip


def full(syntax: str = ExplicitVRLittleEndian, **attributes: object) -> bytes:
    kind = {"PhotometricInterpretation": "YBR_FULL"} if syntax == JPEGBaseline8Bit else {}
    region = Dataset()
    region.CodeMeaning = "Forearm"
    return coded(
        [waves()] * 2, syntax, **kind,
        **({
            "SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.0", "Modality": "XC",
            "ImageLaterality": "L", "AnatomicRegionSequence": Sequence([region]), "SpecificCharacterSet": "ISO_IR 192",
            "PatientName": "Núñez^Ona", "PatientID": "0815", "PatientBirthDate": "19700131", "PatientSex": "F",
        } | attributes),
    )  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
def test_the_identity_is_read_in_every_encoding(syntax: str) -> None:
    found = dicom.identity(full(syntax))
    assert found == dicom.Identity(
        sop_class=DERMOSCOPIC_PHOTOGRAPHY, sop_instance="1.2.3.4", study="1.2.3", series="1.2.3.0", modality="XC", frames=2,
        laterality="L", body_part="Forearm",
    )  # fmt: skip


def test_the_patient_is_read_only_when_asked_for() -> None:
    assert dicom.identity(full()).patient is None
    assert "Ona" not in repr(dicom.identity(full(), with_patient=True)), "nor does a log say it"
    patient = dicom.identity(full(), with_patient=True).patient
    assert patient is not None
    assert (patient.id, patient.name, patient.birth_date, patient.sex) == ("0815", "Núñez^Ona", "19700131", "F")
    latin = full(SpecificCharacterSet="ISO_IR 100")
    assert dicom.identity(latin, with_patient=True).patient == patient
    japanese = full(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    found = dicom.identity(japanese, with_patient=True).patient
    assert found is not None
    assert found.name == "Yamada^Tarou=山田^太郎"


def test_missing_values_are_no_reason_to_refuse() -> None:
    found = dicom.identity(make(waves()), with_patient=True)
    assert (found.study, found.series, found.modality, found.frames) == (None, None, "", 1)
    assert (found.laterality, found.body_part) == ("", "")
    assert found.patient == type(found.patient)(id="", name="Nobody^Real", birth_date="", sex="")  # type: ignore[misc]
    odd = dicom.identity(full(StudyInstanceUID="", NumberOfFrames=0, BodyPartExamined="ARM", Laterality="R"))
    assert (odd.study, odd.frames, odd.body_part, odd.laterality) == (None, 0, "ARM", "L")


@pytest.mark.parametrize("bad", ["", "1", "1.", ".1", "1..2", "1.02", "1.2a", "1.2 3", "1." + "2" * 63])
@pytest.mark.parametrize("tag", [b"\x08\x00\x16\x00UI", b"\x08\x00\x18\x00UI"], ids=["class", "instance"])
def test_a_missing_or_malformed_uid_is_refused(tag: bytes, bad: str) -> None:
    data = full()
    start = data.rindex(tag)
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    value = bad.encode() + b"\x00" * (len(bad) % 2)
    with pytest.raises(DicomNotUnderstood, match="missing or malformed") as caught:
        dicom.identity(data[: start + 6] + len(value).to_bytes(2, "little") + value + data[start + 8 + length :])
    assert caught.value.dicom_status >> 12 == 0xC
    assert isinstance(caught.value, ImageError)


def data_set(syntax: str) -> bytes:
    """What comes over the network: the data set without preamble and meta group."""
    parsed = dcmread(io.BytesIO(full(ExplicitVRLittleEndian)))
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == ImplicitVRLittleEndian
    write_dataset(buffer, Dataset(parsed))
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_a_c_store_becomes_a_file(syntax: str) -> None:
    body = data_set(syntax)
    made = dicom.file(body, sop_class=DERMOSCOPIC_PHOTOGRAPHY, sop_instance="1.2.3.4", syntax=syntax)
    assert made.endswith(body)
    assert dicom.identity(made).sop_instance == "1.2.3.4"
    first, _ = dicom.frames(made)
    assert np.array_equal(image.decode(first), waves())
    read = dcmread(io.BytesIO(made))  # a parser of other hands takes it for a file
    assert read.file_meta.TransferSyntaxUID == syntax
    assert read.file_meta.FileMetaInformationGroupLength == len(made) - len(body) - 144
    assert read.pixel_array.shape == (2, 48, 64, 3)


def test_what_was_announced_must_be_what_came() -> None:
    body = data_set(ExplicitVRLittleEndian)
    secondary = dicom.file(
        body, sop_class="1.2.840.10008.5.1.4.1.1.7", sop_instance="1.2.3.4", syntax=ExplicitVRLittleEndian
    )
    with pytest.raises(SopClassMismatch) as caught:
        dicom.identity(secondary)
    assert caught.value.dicom_status == 0xA900
    other = dicom.file(body, sop_class=DERMOSCOPIC_PHOTOGRAPHY, sop_instance="1.2.3.5", syntax=ExplicitVRLittleEndian)
    with pytest.raises(DicomNotUnderstood, match="another SOP instance"):
        dicom.identity(other)
    with pytest.raises(DicomNotUnderstood):
        dicom.file(body, sop_class="no uid", sop_instance="1.2", syntax=ExplicitVRLittleEndian)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", bytes(128) + b"DICM", full()[:200], full()[:300]])
def test_what_is_no_dicom_file_is_refused(data: bytes) -> None:
    with pytest.raises(DicomNotUnderstood):
        dicom.identity(data)


def test_the_pixels_are_not_read() -> None:
    data = full()
    assert dicom.identity(data[: data.rindex(b"\xe0\x7f\x10\x00")]) == dicom.identity(data)


def test_a_deflated_bomb_is_refused_by_its_size() -> None:
    with pytest.raises(ImageTooLarge):
        dicom.identity(coded([np.zeros((6000, 6000), np.uint8)], DeflatedExplicitVRLittleEndian))
