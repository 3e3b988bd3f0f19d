"""What is kept of a patient: nothing, a pseudonym, or what a report must repeat; rule by rule.

1. No report will be sent, because the sender's organisation has no destination: nothing is kept, nor read.
2. The organisation has not asked for more: a pseudonym stands in place of the patient's id and name. It is the same for the
   same patient id of the same organisation, and cannot be led back without the server's key. Birth date and sex are empty.
3. The organisation asked for it (`Organisation.keeps_patients`): id, name, birth date and sex, as they came.

Whatever is kept is sealed, stands in `Instance.patient` alone, and is emptied once the report was delivered. UIDs of study,
series and instance are kept in every case: the answer to "is this image stored?" and the report's reference to it are made
of them, and they lead to a person only in the archive that made them.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import Final
from uuid import UUID

from dermserve.dicom.identity import Patient
from frontend.vault import Vault

PURPOSE: Final = "dicom patient"
_CHARACTERS: Final = 26  # of base32: 130 bits


class Identifiers:
    """Applies the rules with the server's key."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def kept(self, patient: Patient, *, study_uid: str, organisation: UUID, as_it_came: bool) -> bytes:
        """What stands in `Instance.patient`.

        Args:
            patient: as the object says it.
            study_uid: stands for the patient where the object has no patient id.
            organisation: patients of two organisations share no pseudonym.
            as_it_came: `Organisation.keeps_patients`.
        """
        if not as_it_came:
            pseudonym = self._pseudonym(patient.id, study_uid, organisation)
            patient = Patient(id=pseudonym, name=pseudonym, birth_date="", sex="")
        return self._vault.seal(json.dumps(asdict(patient)).encode(), PURPOSE)

    def read(self, kept: bytes) -> Patient | None:
        """The patient as kept; None where the server's key is another by now."""
        opened = self._vault.open(kept, PURPOSE)
        return Patient(**json.loads(opened)) if opened is not None else None

    def _pseudonym(self, patient_id: str, study_uid: str, organisation: UUID) -> str:
        whom = json.dumps(
            [str(organisation), "patient", patient_id] if patient_id else [str(organisation), "study", study_uid]
        )
        digest = self._vault.pseudonym(whom.encode(), PURPOSE)
        return "DS" + base64.b32encode(digest).decode()[:_CHARACTERS]
