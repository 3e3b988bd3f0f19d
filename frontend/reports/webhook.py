"""A result as the JSON of a webhook, and how messages are signed (Standard Webhooks, standardwebhooks.com).

The signature is HMAC-SHA-256 over `id.timestamp.body`. Whoever receives checks it, refuses a timestamp far from now, and
remembers ids: they stay the same over all attempts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import UTC
from typing import Final

from frontend.reports import fhir, identity, words
from frontend.reports.facts import Facts
from frontend.schemas import Result

CONTENT_TYPE: Final = "application/json"
_PREFIX: Final = "whsec_"
_KEY_BYTES: Final = (24, 64)  # what the specification allows


def body(facts: Facts) -> bytes:
    """The message, the same bytes for the same result: what somebody may still change about it is left out."""
    row = facts.prediction
    data = Result.of(row).model_dump(mode="json", exclude={"context"})
    data["notes"] = words.all_of(facts)
    if facts.instance is not None:
        image = facts.instance
        data["dicom"] = {
            "sop_class_uid": image.sop_class_uid,
            "sop_instance_uid": image.sop_instance_uid,
            "study_instance_uid": image.study_uid,
            "series_instance_uid": image.series_uid,
            "frame": image.frame,
            "frames": image.frames,
            "report_uid": identity.report_uid(row),
            "patient_id": facts.patient.patient_id if facts.patient else None,
            "accession_number": (facts.patient.accession_number or None) if facts.patient else None,
        }
    created = row.created_at.astimezone(UTC).isoformat()
    return _json({"type": "result.created", "timestamp": created, "data": data})


def fhir_body(facts: Facts) -> bytes:
    """The same as a FHIR DiagnosticReport."""
    return _json(fhir.diagnostic_report(facts))


def new_secret() -> str:
    """A key to sign with, as both sides keep it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def is_secret(text: str) -> bool:
    """Whether it is a key as `new_secret` makes it, of 24 to 64 bytes."""
    try:
        return text.startswith(_PREFIX) and _KEY_BYTES[0] <= len(_key(text)) <= _KEY_BYTES[1]
    except binascii.Error:
        return False


def signed(secret: str, message_id: str, timestamp: int, content: bytes) -> Mapping[str, str]:
    """The headers that go with a message sent at `timestamp`, seconds since 1970."""
    covered = f"{message_id}.{timestamp}.".encode() + content
    signature = base64.b64encode(hmac.new(_key(secret), covered, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
