"""The sentences that stand in every report, whatever its form. In English: DICOM and FHIR say so beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from frontend.reports.facts import Facts
from frontend.schemas import plain

RESEARCH_ONLY: Final = (
    "Research use only; not a medical device. Computed by an algorithm and verified by nobody: probabilities are no "
    "diagnosis, and one below the threshold does not rule melanoma out."
)
ABSTAINED: Final = (
    "The algorithm abstained: the image does not look like the dermoscopy photographs that it knows. "
    "No probability is stated, because it would mean nothing."
)
_FLAGS: Final[Mapping[str, str]] = {
    "blurry": "the image is blurred",
    "hairy": "hair covers part of the image",
    "marker_pen": "pen marks are in the image",
    "color_tint": "the image has a colour cast",
}


def decision(facts: Facts) -> str:
    """What was decided, against which threshold."""
    row = facts.prediction
    if row.abstained:
        return ABSTAINED
    side = "reaches" if row.refer else "is below"
    outcome = "referral" if row.refer else "no referral by this rule"
    return (
        f"P(melanoma) {plain(facts.melanoma):.6g} {side} the threshold {plain(row.threshold):.6g} "
        f"of the operating point {row.operating_point}: {outcome}."
    )


def flags(facts: Facts) -> str | None:
    """What about the photograph can shift the probabilities; None where nothing was found."""
    found = [_FLAGS.get(name, name) for name in facts.prediction.quality_flags]
    return f"Image quality: {'; '.join(found)}. This can shift the probabilities." if found else None


def all_of(facts: Facts) -> list[str]:
    """Every sentence, the most important first."""
    return [RESEARCH_ONLY, decision(facts), *filter(None, [flags(facts)])]
