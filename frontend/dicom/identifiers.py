"""What is kept of a patient: nothing, a pseudonym, or what a report must repeat; rule by rule.

1. No report will be sent, because the sender's organisation has no destination: nothing is kept, nor read.
2. The organisation has not asked for more: a pseudonym stands in place of patient id and name. It is the same for the
   same patient of the same organisation, and cannot be led back without the server's key. All else of the patient and
   the study is left empty.
3. The organisation asked for it (`Organisation.keeps_patients`): the attributes of `KEPT`, as they came.

Whatever is kept is sealed, stands in `Instance.patient` alone, and is emptied once the report was delivered. UIDs of study,
series and instance are kept in every case: the answer to "is this image stored?" and the report's reference to it are made
of them, and they lead to a person only in the archive that made them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from frontend.vault import Vault

KEPT: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Keywords of the patient's and the study's module that a report in the same study must repeat (PS3.3 C.7.1.1, C.7.2.1)."""

_PURPOSE: Final = "dicom patient"
_CHARACTERS: Final = 26  # of base32: 130 bits


class Identifiers:
    """Applies the rules with the server's key."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def kept(self, patient: Mapping[str, str], *, study_uid: str, organisation: UUID, as_it_came: bool) -> bytes:
        """What stands in `Instance.patient`.

        Args:
            patient: keywords of `KEPT` with their values as text; others are ignored.
            study_uid: stands for the patient where the object names none.
            organisation: patients of two organisations share no pseudonym.
            as_it_came: `Organisation.keeps_patients`.
        """
        if as_it_came:
            values = {keyword: patient[keyword] for keyword in KEPT if patient.get(keyword)}
        else:
            pseudonym = self._pseudonym(patient, study_uid, organisation)
            values = {"PatientName": pseudonym, "PatientID": pseudonym}
        return self._vault.seal(json.dumps(values).encode(), _PURPOSE)

    def read(self, kept: bytes) -> dict[str, str] | None:
        """Keywords and values as they were kept; None where the server's key is another by now."""
        opened = self._vault.open(kept, _PURPOSE)
        values: dict[str, str] | None = json.loads(opened) if opened is not None else None
        return values

    def _pseudonym(self, patient: Mapping[str, str], study_uid: str, organisation: UUID) -> str:
        named = [patient.get("PatientID", ""), patient.get("IssuerOfPatientID", "")]
        whom = json.dumps([str(organisation), *(named if named[0] else [study_uid])])
        digest = self._vault.pseudonym(whom.encode(), _PURPOSE)
        return "DS" + base64.b32encode(digest).decode()[:_CHARACTERS]
