"""Leaf diagnoses, and the four reported columns they roll up to.

Leaves are the eight codes of the ISIC 2019 challenge plus `BENIGN_NOS` for what ISIC 2020 calls "unknown" with
target 0. The roll-up follows the ISIC Archive's top level (Benign, Indeterminate, Malignant). The four columns are
not exclusive: Benign + Suspicious + Malignant = 1, and Melanoma is a part of Malignant.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

LEAVES: Final = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "BENIGN_NOS")
COLUMNS: Final = ("Benign", "Suspicious", "Malignant", "Melanoma")
CSV_HEADER: Final = ("filename", *COLUMNS)

LEAF_NAMES: Final = {
    "MEL": "Melanoma",
    "NV": "Melanocytic nevus",
    "BCC": "Basal cell carcinoma",
    "AK": "Actinic keratosis",
    "BKL": "Benign keratosis",
    "DF": "Dermatofibroma",
    "VASC": "Vascular lesion",
    "SCC": "Squamous cell carcinoma",
    "BENIGN_NOS": "Benign, not otherwise specified",
}

COLUMN_LEAVES: Final = {
    "Benign": ("NV", "BKL", "DF", "VASC", "BENIGN_NOS"),
    "Suspicious": ("AK",),
    "Malignant": ("MEL", "BCC", "SCC"),
    "Melanoma": ("MEL",),
}

QUALITY_FLAGS: Final = ("blurry", "hairy", "marker_pen", "color_tint")


def rollup_matrix() -> NDArray[np.float32]:
    """The 0/1 matrix M of shape [9, 4] with `columns = diagnoses @ M`; it is also baked into the exported graph."""
    return np.array(
        [[leaf in COLUMN_LEAVES[column] for column in COLUMNS] for leaf in LEAVES],
        dtype=np.float32,
    )
