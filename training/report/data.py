"""The labelled images of a data folder as sets to be measured: the validation images and each test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import SeenImages, image_id
from training import datasets, splits, truth
from training.datasets import Record
from training.report.examine import TEST, UNKNOWN, VALIDATION, Scored
from training.truth import VALIDATION_NAME, Labels, TestSet

MELANOMA = LEAVES.index("MEL")
_SPLIT = "splits.csv"


@dataclass(frozen=True)
class LabelledSet:
    """Images with known truth, before they are scored; `targets` (leaf index [N]) is None where only melanoma is known."""

    name: str
    role: str
    names: list[str]
    paths: list[Path]
    truth: NDArray[np.bool_]
    groups: list[str]
    targets: NDArray[np.int64] | None = None
    sources: tuple[str, ...] = ()

    def scored(self, leaves: NDArray[np.float64], scores: NDArray[np.float64] | None = None) -> Scored:
        """With the leaves' probabilities [N, 9]; P(melanoma) [N] is theirs unless given."""
        return Scored(
            self.name,
            self.role,
            self.names,
            self.truth,
            leaves[:, MELANOMA].astype(np.float64) if scores is None else scores,
            self.groups,
            None if self.targets is None else (self.targets, leaves.argmax(axis=1)),
            self.sources,
        )


def validation_set(records: list[Record], groups: dict[str, str]) -> LabelledSet:
    """The validation part of a split."""
    targets = np.array([record.target for record in records])
    return LabelledSet(
        VALIDATION_NAME,
        VALIDATION,
        [record.name for record in records],
        [record.path for record in records],
        targets == MELANOMA,
        [groups[record.name] for record in records],
        targets,
        tuple(record.source for record in records),
    )


def test_set(test: TestSet) -> LabelledSet:
    """A test set, of which melanoma or not is known."""
    names = list(test.labels.melanoma)
    return LabelledSet(
        test.name,
        TEST,
        names,
        test.paths,
        np.array([test.labels.melanoma[name] for name in names]),
        [test.labels.groups[name] for name in names],
    )


test_set.__test__ = False  # type: ignore[attr-defined]  # no test case, whatever pytest makes of the name


def read(root: Path, seed: int, seen: SeenImages | None) -> list[LabelledSet]:
    """The validation images of `root` and its test sets, in that order.

    Args:
        root: as for training.
        seed: of the training run; it and a `splits.csv` decide which are the validation images where `seen` is None.
        seen: the images that the weights have seen, where the card knows. Where it does not, all sets have an unknown
            role, and every labelled image of `root` counts as one that was trained on.

    Raises:
        StartupError: the folder cannot be read, lacks validation images of these weights, or a test set holds images
            that they were trained or fixed on.
    """
    found = datasets.read(root)
    parts = _split(found, root, seed)
    tests = [test_set(test) for test in truth.find_test_sets(root) if len(set(test.labels.melanoma.values())) == 2]
    if seen is None:
        labelled = {image_id(record.name) for record in found.records}
        _refuse(tests, [[name for name in test.names if image_id(name) in labelled] for test in tests])
        return [replace(one, role=UNKNOWN) for one in (validation_set(parts.validation, parts.groups), *tests)]
    fixed = set(seen.fixed_on(record.name for record in found.records))
    if len(fixed) != seen.fixed_count:
        raise StartupError(
            f"{root} holds {len(fixed):,} of the {seen.fixed_count:,} validation images of these weights. Give the data "
            "that they were trained on."
        )
    _refuse(tests, [[*seen.trained_on(test.names), *seen.fixed_on(test.names)] for test in tests])
    return [validation_set([record for record in found.records if record.name in fixed], parts.groups), *tests]


def _refuse(tests: Sequence[LabelledSet], used: Sequence[Sequence[str]]) -> None:
    """Refuse the first test set some of whose images were `used`."""
    for test, shared in zip(tests, used, strict=True):
        if shared:
            raise StartupError(
                f"{len(shared):,} images of the test set {test.name} were used in training, for example {shared[0]}: "
                "its figures would say nothing about new images."
            )


def read_labels(path: Path, seed: int = 0) -> tuple[Labels, dict[str, str]]:
    """Labels of a table, or of all images below a data folder; and the source of each image where it is known.

    Raises:
        StartupError: see `truth.read_labels`, `datasets.read` and `splits.split`.
    """
    if path.is_file():
        return truth.read_labels(path), {}
    found = datasets.read(path)
    parts = _split(found, path, seed)
    labels = Labels(
        {record.name: record.leaf == "MEL" for record in found.records},
        {record.name: parts.groups[record.name] for record in found.records},
    )
    for test in truth.find_test_sets(path):
        labels.melanoma.update(test.labels.melanoma)
        labels.groups.update(test.labels.groups)
    return labels, {record.name: record.source for record in found.records}


def _split(found: datasets.Dataset, root: Path, seed: int) -> splits.Split:
    given = root / _SPLIT
    return splits.split(found, given=given if given.exists() else None, seed=seed)
