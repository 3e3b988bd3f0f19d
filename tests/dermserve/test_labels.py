from __future__ import annotations

import numpy as np
import pytest

from dermserve.labels import COLUMN_LEAVES, COLUMNS, CSV_HEADER, LEAF_NAMES, LEAVES, rollup_matrix


def test_the_csv_header_is_the_contract() -> None:
    assert ",".join(CSV_HEADER) == "filename,Benign,Suspicious,Malignant,Melanoma"


def test_the_first_three_columns_share_out_every_leaf_once() -> None:
    shared = [leaf for column in COLUMNS[:3] for leaf in COLUMN_LEAVES[column]]
    assert sorted(shared) == sorted(LEAVES)
    assert set(LEAF_NAMES) == set(LEAVES)


def test_any_diagnoses_roll_up_to_one_and_melanoma_is_a_part_of_malignant() -> None:
    diagnoses = np.random.default_rng(0).dirichlet(np.ones(9), 100).astype(np.float32)
    columns = diagnoses @ rollup_matrix()
    assert columns[:, :3].sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (columns[:, 3] <= columns[:, 2]).all()
    assert np.array_equal(columns[:, 3], diagnoses[:, LEAVES.index("MEL")])
