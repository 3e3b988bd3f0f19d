"""What reports say, read by others' programs: dcmtk and dicom3tools, FHIR's models, a receiver that checks signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fhir.resources.diagnosticreport import DiagnosticReport
from highdicom.sr import MeasurementReport, srread
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts

from dermserve import labels
from frontend.models import Instance
from frontend.reports import codes, identity, structured, webhook, words
from frontend.reports.facts import Card, Facts, Patient
from tests.frontend.conftest import make_card
from tests.frontend.sending import MULTI_FRAME, origin, prediction

CARD = Card("melanoma", "1.2.3", "1" * 64, "c" * 64)
needs_dcmtk = pytest.mark.skipif(not shutil.which("dsrdump"), reason="dcmtk is not installed")
needs_dicom3tools = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")


def facts(patient: Patient | None = None, *, of: dict[str, Any] | None = None, **changes: Any) -> Facts:
    image = Instance(**asdict(origin(**(of or {}))))
    return Facts(prediction(**changes), CARD, image, patient or Patient("derm-0123456789abcdef"))


def report(made: Facts) -> bytes:
    assert made.instance
    assert made.patient
    return structured.encode(structured.document(made, made.instance, made.patient))


def items(dataset: Dataset) -> list[Dataset]:
    """Every content item, in document order."""
    found = []
    for item in dataset.get("ContentSequence", []):
        found += [item, *items(item)]
    return found


def named(dataset: Dataset, value: str) -> list[Dataset]:
    return [item for item in items(dataset) if item.ConceptNameCodeSequence[0].CodeValue == value]


KNOWN = Patient(
    "4711", "Müster^Ünsal", "19500131", "F", "A-2026-1", "S1", "20261123", "101500.25", "Doe^John"
)  # made up
VARIANTS = {
    "pseudonym": facts(),
    "patient": facts(KNOWN),
    "frame": facts(of={"sop_class_uid": MULTI_FRAME, "frame": 2, "frames": 3}),
    "abstained": facts(abstained=True),
    "below": facts(refer=False, threshold=0.5, quality_flags=[]),
    "lesion": facts(lesion_id=uuid4(), quality_flags=list(labels.QUALITY_FLAGS)),
}


@pytest.mark.parametrize("made", VARIANTS.values(), ids=list(VARIANTS))
@needs_dcmtk
def test_dsrdump_reads_the_report_without_a_word_of_complaint(made: Facts, tmp_path: Path) -> None:
    file = tmp_path / "report.dcm"
    file.write_bytes(report(made))
    read = subprocess.run(["dsrdump", "+Pl", file], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert not [line for line in read.stderr.splitlines() if line.startswith("E:")]
    assert "Completion Flag     : COMPLETE" in read.stdout
    assert "Verification Flag   : UNVERIFIED" in read.stdout
    assert words.RESEARCH_ONLY in read.stdout


@pytest.mark.parametrize("made", VARIANTS.values(), ids=list(VARIANTS))
@needs_dicom3tools
def test_dciodvfy_finds_no_error(made: Facts, tmp_path: Path) -> None:
    file = tmp_path / "report.dcm"
    file.write_bytes(report(made))
    found = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
    said = (found.stdout + found.stderr).splitlines()
    assert "ComprehensiveSR" in said
    assert not [line for line in said if line.startswith("Error")]


def test_the_report_refers_to_its_image_and_says_who_computed_it() -> None:
    made = VARIANTS["frame"]
    assert made.instance
    read = dcmread(io.BytesIO(report(made)))
    assert read.StudyInstanceUID == made.instance.study_uid
    assert read.SeriesInstanceUID != made.instance.series_uid
    assert (read.PatientID, str(read.PatientName)) == ("derm-0123456789abcdef", "")
    image = named(read, "121112")[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == made.instance.sop_instance_uid
    assert image.ReferencedFrameNumber == 2
    evidence = read.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == made.instance.series_uid
    said = {item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue for item in items(read) if "TextValue" in item}
    assert (said["Algorithm Name"], said["Algorithm Version"]) == ("melanoma", "1.2.3")
    assert said["Device Observer Manufacturer"] == "dermserve"
    parameters = [item.TextValue for item in named(read, "111002")]
    assert f"model_card_sha256={'c' * 64}" in parameters
    assert "operating_point=sensitivity_95" in parameters


def test_the_hash_of_another_cards_weights_is_not_claimed() -> None:
    """A result waited while another model was put in place."""
    assert not [one for one in facts(model_version="1.2.2").parameters if "sha256" in one]


def test_highdicom_reads_one_group_with_thirteen_probabilities() -> None:
    made = VARIANTS["below"]
    assert made.instance
    content = srread(io.BytesIO(report(made))).content
    assert isinstance(content, MeasurementReport)
    (group,) = content.get_image_measurement_groups()
    assert group.tracking_uid == identity.tracking(made.prediction, made.instance)[1]
    measured = {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}
    assert measured == {
        **{code.meaning: (value, "{0:1}") for code, value in _expected(codes.COLUMNS, made.prediction.probabilities)},
        **{code.meaning: (value, "{0:1}") for code, value in _expected(codes.DIAGNOSES, made.prediction.diagnoses)},
    }
    said = {one.name.value: one.value.value for one in group.get_qualitative_evaluations()}
    assert said == {"DECISION": "BELOW", "LEADING": "NV"}


def _expected(names: Any, values: list[float]) -> list[tuple[codes.Code, float]]:
    return list(zip(names.values(), values, strict=True))


def test_the_decision_stands_with_its_threshold() -> None:
    (decision,) = named(dcmread(io.BytesIO(report(facts()))), "DECISION")
    assert decision.ConceptCodeSequence[0].CodeValue == "REFER"
    (threshold,) = decision.ContentSequence
    assert float(threshold.MeasuredValueSequence[0].NumericValue) == 0.12


def test_where_the_model_abstained_no_number_can_be_mistaken_for_a_result() -> None:
    read = dcmread(io.BytesIO(report(VARIANTS["abstained"])))
    assert not [item for item in items(read) if item.ValueType == "NUM"]
    assert named(read, "DECISION")[0].ConceptCodeSequence[0].CodeValue == "ABSTAINED"
    assert not named(read, "LEADING")
    assert words.ABSTAINED in [item.TextValue for item in named(read, "121106")]


def test_what_was_kept_of_the_patient_stands_in_the_report() -> None:
    read = dcmread(io.BytesIO(report(VARIANTS["patient"])))
    assert (read.PatientID, str(read.PatientName), read.PatientBirthDate, read.PatientSex) == (
        *("4711", "Müster^Ünsal", "19500131", "F"),
    )
    assert (read.AccessionNumber, read.StudyDate, str(read.ReferringPhysicianName)) == (
        "A-2026-1",
        "20261123",
        "Doe^John",
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["Roe", "a^b^c^d^e^f^g", "Ümläut=漢字"])
def test_an_odd_name_is_reported_as_it_is_and_reaches_no_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    read = dcmread(io.BytesIO(report(facts(Patient("1", name, referring_physician=name)))))
    assert str(read.PatientName) == name
    assert caplog.text == ""


def test_what_dicom_has_no_room_for_is_left_out_of_the_patient() -> None:
    kept = {
        "patient_id": "1\\2\n3",
        "birth_date": "1950-01-31",
        "sex": "female",
        "accession_number": "7" * 17,
        "other": 1,
    }
    assert Patient.of(kept) == Patient("12 3")


def test_a_report_made_again_is_the_same_object() -> None:
    made = facts(KNOWN)
    first, again = report(made), report(made)
    assert first == again
    assert dcmread(io.BytesIO(first)).SOPInstanceUID == f"2.25.{made.prediction.id.int}"
    assert webhook.body(made) == webhook.body(made)


def test_images_of_one_lesion_are_tracked_as_one_and_images_without_apart() -> None:
    lesion = uuid4()
    one, other = facts(lesion_id=lesion), facts(lesion_id=lesion)
    assert one.instance
    assert other.instance
    assert identity.tracking(one.prediction, one.instance) == identity.tracking(other.prediction, other.instance)
    apart, image = facts(), facts().instance
    assert apart.instance
    assert image
    assert identity.tracking(apart.prediction, apart.instance) != identity.tracking(apart.prediction, image)


def test_every_snomed_code_is_one_of_the_standards_dictionary() -> None:
    known = {
        (code, said[0]) for entries in concepts["SCT"].values() for code, said in entries.items()
    }  # pydicom's copy of PS3.16
    used = {
        *codes.FINDINGS.values(),
        *codes.COLUMN_FINDINGS.values(),
        *(codes.SKIN_LESION, codes.IMAGING_PROCEDURE),
    }
    snomed = {(code.value, code.meaning) for code in used if code.scheme == "SCT"}
    assert snomed <= known
    assert {codes.FINDINGS[leaf].scheme for leaf in ("MEL", "AK", "SCC", "BENIGN_NOS")} == {"SCT"}
    assert set(codes.FINDINGS) == set(labels.LEAVES)
    ours = [one for one in vars(codes).values() if isinstance(one, codes.Code)]
    assert all(len(one.value) <= 16 and len(one.meaning) <= 64 for one in [*ours, *used, *codes.DIAGNOSES.values()])


@pytest.mark.parametrize("made", VARIANTS.values(), ids=list(VARIANTS))
def test_the_fhir_form_is_a_valid_r5_resource(made: Facts) -> None:
    resource = DiagnosticReport.model_validate_json(webhook.fhir_body(made))
    assert resource.status == "preliminary"
    contained = {one.id: one for one in resource.contained}
    assert {one.reference.removeprefix("#") for one in resource.result} <= set(contained)
    assert words.RESEARCH_ONLY in resource.conclusion
    if made.prediction.abstained:
        assert set(contained) == {"algorithm", "decision"}
        assert resource.conclusionCode[0].coding[0].code == "ABSTAINED"
    else:
        values = [float(one.valueQuantity.value) for one in contained["diagnoses"].component]
        assert values == made.prediction.diagnoses


def test_the_fhir_form_of_an_image_that_was_no_dicom_object() -> None:
    resource = DiagnosticReport.model_validate_json(webhook.fhir_body(Facts(prediction(), CARD)))
    assert resource.study is None
    assert resource.subject is None


def test_a_message_holds_the_result_as_the_api_gives_it_but_nothing_that_may_change() -> None:
    made = facts(note="a note", body_site="palms/soles")
    said = json.loads(webhook.body(made))
    assert said["type"] == "result.created"
    assert said["data"]["probabilities"]["melanoma"] == 0.15
    assert said["data"]["dicom"]["report_uid"] == identity.report_uid(made.prediction)
    assert "a note" not in json.dumps(said)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's libraries: the same secret, id, time and payload give the same signature."""
    secret, payload = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = webhook.signed(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, payload)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    made = webhook.new_secret()
    assert webhook.is_secret(made)
    covered = b"msg_1.5." + payload
    expected = hmac.new(base64.b64decode(made.removeprefix("whsec_")), covered, hashlib.sha256).digest()
    assert webhook.signed(made, "msg_1", 5, payload)["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
    assert not any(map(webhook.is_secret, ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!", made.removeprefix("whsec_")]))


def test_the_cards_hash_is_that_of_its_file(tmp_path: Path) -> None:
    make_card(tmp_path)
    file = tmp_path / "classifier/1/model_card.json"
    assert Card.read(tmp_path).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
