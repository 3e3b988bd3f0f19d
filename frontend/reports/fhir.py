"""A result as a FHIR R5 DiagnosticReport, whole in one resource: what it refers to is contained in it.

`preliminary`, because nobody verified it. The image is named by its DICOM UIDs as FHIR writes them
(hl7.org/fhir/R5/imagingstudy.html#dicom-uids), or by the SHA-256 of its bytes where it was no DICOM object.
"""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Any, Final

from dermserve import labels
from frontend.reports import codes, identity, words
from frontend.reports.codes import Code
from frontend.reports.facts import MANUFACTURER, Facts
from frontend.schemas import plain

CONTENT_TYPE: Final = "application/fhir+json"
_SYSTEMS: Final = {"SCT": "http://snomed.info/sct", "UCUM": "http://unitsofmeasure.org", codes.SCHEME: codes.SCHEME_URI}
_DICOM_UID: Final = "urn:dicom:uid"
_URI: Final = "urn:ietf:rfc:3986"
_TITLE: Final = codes.own("REPORT", "Classification of a skin lesion image by an algorithm")
_GROUPS: Final = codes.own("GROUPS", "Probabilities of benign, suspicious, malignant; melanoma")
_LEAVES: Final = codes.own("DIAGNOSES", "Probabilities of nine diagnoses")
_IMAGING: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/v2-0074",
    "code": "IMG",
    "display": "Diagnostic Imaging",
}
_ALGORITHM: Final = "algorithm"

Json = dict[str, Any]


def diagnostic_report(facts: Facts) -> Json:
    """The resource as JSON; numbers and times are the stored result's."""
    row = facts.prediction
    issued = row.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    observations = _observations(facts, issued)
    report: Json = {
        "resourceType": "DiagnosticReport",
        "id": str(row.id),
        "language": "en-US",
        "contained": [_device(facts), *observations],
        "identifier": _identifiers(facts),
        "status": "preliminary",
        "category": [{"coding": [_IMAGING]}],
        "code": _concept(_TITLE),
        "issued": issued,
        "result": [{"reference": f"#{one['id']}"} for one in observations],
        "note": [{"text": sentence} for sentence in words.all_of(facts)],
        "conclusion": f"{words.decision(facts)} {words.RESEARCH_ONLY}",
        "conclusionCode": [_concept(_decision(facts))],
    }
    if facts.patient is not None:
        report["subject"] = {"type": "Patient", "identifier": {"value": facts.patient.patient_id}}
        if facts.patient.accession_number:
            report["basedOn"] = [
                {"type": "ServiceRequest", "identifier": {"type": _ACCESSION, "value": facts.patient.accession_number}}
            ]
    if facts.instance is not None:
        report["study"] = [{"type": "ImagingStudy", "identifier": _dicom_identifier(facts.instance.study_uid)}]
    return report


_ACCESSION: Final = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


def _identifiers(facts: Facts) -> list[Json]:
    row = facts.prediction
    digest = base64.urlsafe_b64encode(row.image_sha256).decode().rstrip("=")  # RFC 6920
    found: list[Json] = [
        {"use": "official", "system": _URI, "value": f"urn:uuid:{row.id}"},
        {"use": "secondary", "system": _URI, "value": f"ni:///sha-256;{digest}"},
    ]
    if facts.instance is not None:
        found.append({"use": "secondary", **_dicom_identifier(identity.report_uid(row))})
    return found


def _device(facts: Facts) -> Json:
    row = facts.prediction
    parameters = (parameter.partition("=") for parameter in facts.parameters)
    return {
        "resourceType": "Device",
        "id": _ALGORITHM,
        "identifier": [_dicom_identifier(identity.device_uid(row))],
        "manufacturer": MANUFACTURER,
        "name": [{"value": f"{MANUFACTURER} {row.model_name}", "type": "user-friendly-name", "display": True}],
        "modelNumber": row.model_name,
        "version": [{"value": row.model_version}],
        "property": [{"type": {"text": name}, "valueString": value} for name, _, value in parameters],
    }


def _observations(facts: Facts, issued: str) -> list[Json]:
    row = facts.prediction
    decision = _observation(facts, "decision", codes.DECISION, issued)
    decision["valueCodeableConcept"] = _concept(_decision(facts))
    flags = [codes.FLAGS[flag] for flag in row.quality_flags if flag in codes.FLAGS]
    if flags:
        decision["component"] = [
            {"code": _concept(codes.FLAG), "valueCodeableConcept": _concept(flag)} for flag in flags
        ]
    if row.abstained:
        return [decision]
    decision.setdefault("component", []).append(_component(codes.THRESHOLD, row.threshold))
    decision["component"].append(
        {"code": _concept(codes.LEADING), "valueCodeableConcept": _concept(codes.FINDINGS[facts.leading])}
    )
    groups = _observation(facts, "probabilities", _GROUPS, issued)
    groups["component"] = [
        _component(codes.COLUMNS[name], value) for name, value in zip(labels.COLUMNS, row.probabilities, strict=True)
    ]
    leaves = _observation(facts, "diagnoses", _LEAVES, issued)
    leaves["component"] = [
        _component(codes.DIAGNOSES[leaf], value) for leaf, value in zip(labels.LEAVES, row.diagnoses, strict=True)
    ]
    return [decision, groups, leaves]


def _observation(facts: Facts, name: str, code: Code, issued: str) -> Json:
    found: Json = {
        "resourceType": "Observation",
        "id": name,
        "status": "preliminary",
        "code": _concept(code),
        "issued": issued,
        "device": {"reference": f"#{_ALGORITHM}"},
    }
    if facts.instance is not None:
        image = facts.instance
        derived: Json = {"type": "ImagingSelection", "identifier": _dicom_identifier(image.sop_instance_uid)}
        if image.frames > 1:
            derived["display"] = f"frame {image.frame} of {image.frames}"
        found["derivedFrom"] = [derived]
    return found


def _component(code: Code, value: float) -> Json:
    # Without the diagnosis's own code: codings of one concept are synonyms, and a probability is not its diagnosis.
    quantity = {"value": plain(value), "system": _SYSTEMS[codes.UNIT.scheme], "code": codes.UNIT.value}
    return {"code": _concept(code), "valueQuantity": quantity}


def _concept(code: Code) -> Json:
    coding = {"system": _SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}
    return {"coding": [coding], "text": code.meaning}


def _decision(facts: Facts) -> Code:
    if facts.prediction.abstained:
        return codes.ABSTAINED
    return codes.REFER if facts.prediction.refer else codes.BELOW


def _dicom_identifier(uid: str) -> Json:
    return {"system": _DICOM_UID, "value": f"urn:oid:{uid}"}
