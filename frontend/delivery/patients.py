"""Whom a report is about: what was kept of the image's patient, or a pseudonym."""

from __future__ import annotations

from dataclasses import asdict

from frontend.dicom.identifiers import Identifiers
from frontend.models import Instance
from frontend.reports.facts import Patient
from frontend.vault import Vault

_PURPOSE = "study pseudonym"


class PatientUnreadableError(Exception):
    """What was kept was sealed with another key of the server, or altered."""


def patient_of(instance: Instance, vault: Vault) -> Patient:
    """As the report names them; where nothing was kept, a pseudonym that is the same for all images of a study.

    Raises:
        PatientUnreadableError: a report with a pseudonym would then reach an archive that knows the patient by name.
    """
    pseudonym = f"derm-{vault.pseudonym(instance.study_uid.encode(), _PURPOSE).hex()[:24]}"
    if instance.patient is None:
        return Patient(pseudonym)
    kept = Identifiers(vault).read(instance.patient)
    if kept is None:
        raise PatientUnreadableError
    said = asdict(kept)
    return Patient.of({**said, "patient_id": said["id"] or pseudonym})
