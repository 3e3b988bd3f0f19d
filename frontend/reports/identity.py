"""Names of reports and of what they are about, made from ids alone: said twice, they are the same.

A UID is `2.25.` and a UUID as one decimal number (PS3.5 annex B.2); what has no UUID of its own gets one from its name and
`NAMESPACE` (RFC 9562 §5.5).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid5

from frontend.models import Instance, Prediction

NAMESPACE: Final = UUID("58fff87a-7dc5-4c73-bc3e-9b4a30af3a00")
"""Drawn once for this project; changing it would make other objects of all that was sent before."""


def uid(uuid: UUID) -> str:
    """A UUID as a DICOM UID of at most 44 characters."""
    return f"2.25.{uuid.int}"


def report_uid(prediction: Prediction) -> str:
    """SOP instance UID of a result's structured report."""
    return uid(prediction.id)


def series_uid(prediction: Prediction, instance: Instance) -> str:
    """Series of the reports by one version of the model on the images that one sender has of a study."""
    return uid(
        _named("series", prediction.owner_id, instance.study_uid, prediction.model_name, prediction.model_version)
    )


def device_uid(prediction: Prediction) -> str:
    """The algorithm as an observer: another version or preparation of images is another observer."""
    return uid(_named("device", prediction.model_name, prediction.model_version, prediction.preprocessing))


def tracking(prediction: Prediction, instance: Instance) -> tuple[str, str]:
    """What ties measurements of one spot together: a name for people, which holds no word of theirs, and a UID.

    It is the lesion's where the result belongs to one, else the image's.
    """
    if prediction.lesion_id is not None:
        return f"lesion {prediction.lesion_id.hex[:12]}", uid(prediction.lesion_id)
    image = _named("image", instance.sop_instance_uid, instance.frame)
    return f"image {image.hex[:12]}", uid(image)


def message_id(destination: UUID, prediction: UUID) -> str:
    """Names a webhook's message, over all attempts."""
    return f"msg_{_named('message', destination, prediction).hex}"


def _named(kind: str, *parts: object) -> UUID:
    return uuid5(NAMESPACE, "\n".join([kind, *map(str, parts)]))
