"""Codes of what reports say. SNOMED CT codes are those of PS3.16 as pydicom's dictionary holds them; none is from memory.

PS3.16 has no code for melanocytic nevus, basal cell carcinoma, benign keratosis, dermatofibroma and "vascular lesion" as
ISIC uses the word (angiomas, angiokeratomas, pyogenic granulomas), so these have codes of ours alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import uuid5

from dermserve import labels
from frontend.reports import identity

SCHEME: Final = "99DERMSERVE"
"""Designator of our own codes (PS3.16 §8.2: private ones begin with 99)."""
SCHEME_UID: Final = identity.uid(uuid5(identity.NAMESPACE, SCHEME))
SCHEME_URI: Final = f"urn:oid:{SCHEME_UID}"


class Code(NamedTuple):
    """A code value (16 characters at most), its scheme and its meaning (64 at most), in DICOM's sense."""

    value: str
    scheme: str
    meaning: str


def own(value: str, meaning: str) -> Code:
    """A code of ours."""
    return Code(value, SCHEME, meaning)


MELANOMA: Final = Code("1162635006", "SCT", "Malignant melanoma")  # CID 638
ACTINIC_KERATOSIS: Final = Code("201101007", "SCT", "Actinic keratosis")  # CID 4405
SQUAMOUS_CELL_CARCINOMA: Final = Code("254651007", "SCT", "Squamous cell carcinoma of skin")  # CID 638
BENIGN: Final = Code("30807003", "SCT", "Benign")  # CID 6063
MALIGNANT: Final = Code("21594007", "SCT", "Malignant")  # CID 6063
SKIN_LESION: Final = Code("95324001", "SCT", "Skin lesion")  # CID 6014
DERMOSCOPIC_PHOTOGRAPHY: Final = Code("446078004", "SCT", "Dermoscopic photography")
IMAGING_PROCEDURE: Final = Code("363679005", "SCT", "Imaging procedure")  # CID 100

FINDINGS: Final[Mapping[str, Code]] = {
    "MEL": MELANOMA,
    "NV": own("NV", labels.LEAF_NAMES["NV"]),
    "BCC": own("BCC", labels.LEAF_NAMES["BCC"]),
    "AK": ACTINIC_KERATOSIS,
    "BKL": own("BKL", labels.LEAF_NAMES["BKL"]),
    "DF": own("DF", labels.LEAF_NAMES["DF"]),
    "VASC": own("VASC", labels.LEAF_NAMES["VASC"]),
    "SCC": SQUAMOUS_CELL_CARCINOMA,
    "BENIGN_NOS": BENIGN,
}
"""What each leaf of `labels.LEAVES` is called as a finding."""

COLUMN_FINDINGS: Final[Mapping[str, Code]] = {"Benign": BENIGN, "Malignant": MALIGNANT, "Melanoma": MELANOMA}
"""What a column of `labels.COLUMNS` is called as a finding, where PS3.16 has a word that means the same."""
COLUMNS: Final[Mapping[str, Code]] = {
    column: own(f"P-{column.upper()}", f"Probability: {column.lower()}") for column in labels.COLUMNS
}
DIAGNOSES: Final[Mapping[str, Code]] = {
    leaf: own(f"P-{leaf}", f"Probability of diagnosis: {labels.LEAF_NAMES[leaf]}") for leaf in labels.LEAVES
}
"""Names of the measurements. Each has one of its own: a viewer that shows only names must not show thirteen times the same."""

UNIT: Final = Code("{0:1}", "UCUM", "range: 0:1")
LEADING: Final = own("LEADING", "Diagnosis with the highest probability, not verified")
DECISION: Final = own("DECISION", "Decision against the operating point")
THRESHOLD: Final = own("THRESHOLD", "Threshold of the probability of melanoma")
REFER: Final = own("REFER", "Refer: probability at or above the threshold")
BELOW: Final = own("BELOW", "Probability below the threshold")
ABSTAINED: Final = own("ABSTAINED", "Abstained: no statement about this image")
FLAG: Final = own("FLAG", "Image quality flag")
FLAGS: Final[Mapping[str, Code]] = {
    "blurry": own("BLURRY", "Blurred"),
    "hairy": own("HAIRY", "Hair"),
    "marker_pen": own("MARKER_PEN", "Pen marks"),
    "color_tint": own("COLOR_TINT", "Colour cast"),
}
