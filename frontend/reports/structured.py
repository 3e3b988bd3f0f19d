"""A result as a DICOM structured report: TID 1500, Measurement Report, with one measurement group of TID 1501.

A Comprehensive SR in the study of its image: complete, preliminary and unverified. It refers to the image by SOP instance
and frame instead of an image library, because nothing of the image but its identity was kept. Everything in it comes from
the stored result, dates included: the report of a result is the same object whenever it is made.
"""

from __future__ import annotations

import io
from datetime import UTC
from typing import Final

import highdicom as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, DT, TM

from dermserve import labels
from frontend.models import Instance
from frontend.reports import codes, identity, words
from frontend.reports.codes import Code
from frontend.reports.facts import MANUFACTURER, Facts, Patient
from frontend.schemas import plain

SERIES_NUMBER: Final = 9901  # far above what cameras count to
_DERMOSCOPIC: Final = "1.2.840.10008.5.1.4.1.1.77.1.7"  # Dermoscopic Photography Image Storage
_INSTANCE_NUMBERS: Final = 2**31 - 1  # largest integer of VR IS


def document(facts: Facts, instance: Instance, patient: Patient) -> Dataset:
    """The report, with file meta information. Its times are UTC and say so, or local like those of the study's images."""
    row = facts.prediction
    made = row.created_at.astimezone(None if patient.study_time else UTC)
    report = ComprehensiveSR(
        evidence=[_evidence(instance, patient)],
        content=_content(facts, instance),
        series_instance_uid=identity.series_uid(row, instance),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identity.report_uid(row),
        instance_number=row.id.int % _INSTANCE_NUMBERS + 1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        series_description="Melanoma classification, research use only",
        manufacturer_model_name=row.model_name,
        software_versions=row.model_version,
        content_date=made.date(),
        content_time=made.time(),
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                codes.SCHEME, name="dermserve", uid=codes.SCHEME_UID, responsible_organization="dermserve"
            )
        ],
    )
    # Only now: highdicom quotes names that it finds odd in warnings, and those reach logs.
    report.PatientName, report.ReferringPhysicianName = patient.name, patient.referring_physician
    report.InstanceCreationDate, report.InstanceCreationTime = DA(made.date()), TM(made.time())
    for equipment in report.get("ContributingEquipmentSequence", []):  # highdicom notes itself, with the time of now
        equipment.ContributionDateTime = DT(made.replace(tzinfo=None))
    if not patient.study_time:  # it would speak of the study's time, too, which the camera gave by a clock of its own
        report.TimezoneOffsetFromUTC = "+0000"
    return report


def encode(report: Dataset) -> bytes:
    """As a part 10 file."""
    file = io.BytesIO()
    report.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _evidence(instance: Instance, patient: Patient) -> Dataset:
    """The image as far as it is known: what the report inherits and refers to."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
    image.StudyInstanceUID, image.SeriesInstanceUID = instance.study_uid, instance.series_uid
    image.PatientID, image.PatientName = patient.patient_id, ""
    image.PatientBirthDate, image.PatientSex = patient.birth_date, patient.sex
    image.AccessionNumber, image.StudyID = patient.accession_number, patient.study_id
    image.StudyDate, image.StudyTime = patient.study_date or None, patient.study_time or None
    image.ReferringPhysicianName = ""
    return image


def _content(facts: Facts, instance: Instance) -> MeasurementReport:
    row = facts.prediction
    observer = ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=identity.device_uid(row),
            name=f"{MANUFACTURER} {row.model_name}",
            manufacturer_name=MANUFACTURER,
            model_name=f"{row.model_name} {row.model_version}",
        ),
    )
    dermoscopic = instance.sop_class_uid == _DERMOSCOPIC
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=_concept(codes.DERMOSCOPIC_PHOTOGRAPHY if dermoscopic else codes.IMAGING_PROCEDURE),
        imaging_measurements=[_group(facts, instance)],
    )


def _group(facts: Facts, instance: Instance) -> MeasurementsAndQualitativeEvaluations:
    row = facts.prediction
    name, tracking_uid = identity.tracking(row, instance)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=tracking_uid, identifier=name),
        finding_type=_concept(codes.SKIN_LESION),
        algorithm_id=AlgorithmIdentification(
            name=row.model_name, version=row.model_version, manufacturer=MANUFACTURER, parameters=facts.parameters
        ),
        measurements=None if row.abstained else _measurements(facts),
        qualitative_evaluations=_evaluations(facts),
        source_images=[
            SourceImageForMeasurementGroup(
                instance.sop_class_uid,
                instance.sop_instance_uid,
                referenced_frame_numbers=[instance.frame] if instance.frames > 1 else None,
            )
        ],
    )
    group[0].ContentSequence.extend(
        TextContentItem(_concept(_COMMENT), sentence, relationship_type=RelationshipTypeValues.CONTAINS)
        for sentence in words.all_of(facts)
    )
    return group


def _measurements(facts: Facts) -> list[Measurement]:
    row = facts.prediction
    columns = zip(labels.COLUMNS, row.probabilities, strict=True)
    leaves = zip(labels.LEAVES, row.diagnoses, strict=True)
    return [
        *(_probability(codes.COLUMNS[name], value, codes.COLUMN_FINDINGS.get(name)) for name, value in columns),
        *(_probability(codes.DIAGNOSES[leaf], value, codes.FINDINGS[leaf]) for leaf, value in leaves),
    ]


def _probability(name: Code, value: float, finding: Code | None) -> Measurement:
    measurement = Measurement(name=_concept(name), value=plain(value), unit=_concept(codes.UNIT))
    if finding is not None:
        modifier = CodeContentItem(
            _concept(_FINDING), _concept(finding), relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD
        )
        if "ContentSequence" not in measurement[0]:
            measurement[0].ContentSequence = hd.sr.ContentSequence()
        measurement[0].ContentSequence.append(modifier)
    return measurement


def _evaluations(facts: Facts) -> list[QualitativeEvaluation]:
    row = facts.prediction
    flags = [_evaluation(codes.FLAG, codes.FLAGS[flag]) for flag in row.quality_flags if flag in codes.FLAGS]
    if row.abstained:
        return [_evaluation(codes.DECISION, codes.ABSTAINED), *flags]
    decision = _evaluation(codes.DECISION, codes.REFER if row.refer else codes.BELOW)
    decision[0].ContentSequence = hd.sr.ContentSequence(
        [
            NumContentItem(
                _concept(codes.THRESHOLD),
                plain(row.threshold),
                _concept(codes.UNIT),
                relationship_type=RelationshipTypeValues.HAS_PROPERTIES,
            )
        ]
    )
    return [decision, _evaluation(codes.LEADING, codes.FINDINGS[facts.leading]), *flags]


def _evaluation(name: Code, value: Code) -> QualitativeEvaluation:
    return QualitativeEvaluation(name=_concept(name), value=_concept(value))


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


_COMMENT: Final = Code("121106", "DCM", "Comment")
_FINDING: Final = Code("121071", "DCM", "Finding")
