"""Train and validation parts that share no patient, no lesion and no known duplicate."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from dermserve.errors import StartupError
from training.datasets import Dataset, Record
from training.layouts import known, plain, rows

TRAIN, VALIDATION, TEST = "train", "val", "test"


@dataclass(frozen=True)
class Split:
    """Both parts, the group of each image, and where the division came from."""

    train: list[Record]
    validation: list[Record]
    groups: dict[str, str]
    origin: str


def groups(dataset: Dataset) -> dict[str, str]:
    """The group of each image id: images of one patient or lesion and known duplicates are in the same group.

    ISIC 2020 is grouped by patient, ISIC 2019 by lesion, an image without either stands alone; the duplicates list
    then joins groups, within a year and across (union-find).
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    names = {plain(record.name): record.name for record in dataset.records}
    images = set(names.values())

    def unite(first: str, second: str) -> None:
        """Join two groups; one that holds images of `dataset` stays named after such an image."""
        first, second = root(first), root(second)
        if first in images and second not in images:
            first, second = second, first
        parent[first] = second

    for record in (*dataset.records, *dataset.marked):
        for what, key in (("patient", record.patient), ("lesion", record.lesion)):
            if key:  # official ids are unique across the sets, and HAM10000's lesions stand in ISIC 2019, too
                unite(f"{what}:{key}", names.get(plain(record.name), plain(record.name)))
    for pair in dataset.duplicates:  # also of images that are not here: two may be listed with the same third
        first, second = (names.get(plain(name), plain(name)) for name in pair)
        unite(first, second)
    return {record.name: root(record.name) for record in dataset.records}


def split(dataset: Dataset, *, given: Path | None = None, fraction: float = 0.15, seed: int = 0) -> Split:
    """Divide into training and validation images.

    Args:
        dataset: what to divide.
        given: a `splits.csv` (`image,…,group_id,split`), which wins over an own division; images that it marks as
            test are used for neither part. An image without a group_id stands alone.
        fraction: share of the images for validation, 0…1, for an own division.
        seed: of the own division.

    Raises:
        StartupError: a group stands in both parts, a part is empty, or `given` leaves an image out, names one twice or
            names a part that there is not.
    """
    result = _own(dataset, fraction, seed) if given is None else _given(dataset, given)
    assert_disjoint(result)
    return result


def folds(dataset: Dataset, count: int, *, seed: int = 0) -> list[Split]:
    """Divide into `count` folds of groups, stratified by source and leaf; each is the validation part of one split.

    Where a group holds images with a `fold` of their own (the tfrecord of the Kaggle layout), it goes where they say:
    fold tfrecord mod `count`, so that several tfrecords make a fold. Where images marked as duplicates join several
    such groups, which tfrecords keep no account of, all go where most of their images belong.

    Raises:
        StartupError: a group stands in two folds (its tfrecords disagree), or a fold stays empty.
    """
    _assert_tfrecords_agree(dataset, count)
    group_of, members = groups(dataset), defaultdict[str, list[Record]](list)
    for record in dataset.records:
        members[group_of[record.name]].append(record)
    total = _strata(dataset.records)
    taken = [Counter[tuple[str, str]]() for _ in range(count)]
    fold_of: dict[str, int] = {}
    for group in _order(members, seed):
        strata = _strata(members[group])
        said = Counter(record.fold % count for record in members[group] if record.fold is not None)

        def want(fold: int, strata: Counter[tuple[str, str]] = strata) -> float:
            return sum(number * (1 / count - taken[fold][key] / total[key]) for key, number in strata.items())

        chosen = said.most_common(1)[0][0] if said else max(range(count), key=want)
        taken[chosen] += strata
        fold_of |= {record.name: chosen for record in members[group]}
    result = []
    for fold in range(count):
        train = [record for record in dataset.records if fold_of[record.name] != fold]
        validation = [record for record in dataset.records if fold_of[record.name] == fold]
        result.append(Split(train, validation, group_of, f"fold {fold + 1} of {count}, seed {seed}"))
        assert_disjoint(result[-1])
    return result


def write(result: Split, path: Path) -> None:
    """Write a `splits.csv` that `split(given=…)` reads.

    Raises:
        StartupError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "dataset", "group_id", "split"])
            for part, records in ((TRAIN, result.train), (VALIDATION, result.validation)):
                writer.writerows([record.name, record.dataset, result.groups[record.name], part] for record in records)
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from error


def assert_disjoint(result: Split) -> None:
    """Refuse a division in which a group stands in both parts, or one part is empty."""
    if not result.train or not result.validation:
        raise StartupError(f"The split ({result.origin}) leaves no images for training or for validation.")
    shared = {result.groups[record.name] for record in result.train} & {
        result.groups[record.name] for record in result.validation
    }
    if shared:
        raise StartupError(
            f"The split ({result.origin}) puts {len(shared)} groups (patient, lesion or duplicates) into both "
            f"training and validation, for example {min(shared)}."
        )


def _assert_tfrecords_agree(dataset: Dataset, count: int) -> None:
    group_of, said = groups(replace(dataset, marked=[])), defaultdict[str, set[int]](set)
    for record in dataset.records:
        if record.fold is not None:
            said[group_of[record.name]].add(record.fold % count)
    torn = [group for group, several in said.items() if len(several) > 1]
    if torn:
        raise StartupError(
            f"The tfrecords put {len(torn)} groups (patient, lesion or duplicates) into several folds, "
            f"for example {min(torn)}."
        )


def _own(dataset: Dataset, fraction: float, seed: int) -> Split:
    """Greedy: groups in random order go where their strata (source × leaf) are furthest below the wanted share."""
    group_of = groups(dataset)
    members: dict[str, list[Record]] = defaultdict(list)
    for record in dataset.records:
        members[group_of[record.name]].append(record)
    total = Counter((record.source, record.leaf) for record in dataset.records)
    taken: Counter[tuple[str, str]] = Counter()
    chosen: set[str] = set()
    for group in _order(members, seed):
        strata = Counter((record.source, record.leaf) for record in members[group])
        want = sum(count * (fraction * total[key] - taken[key]) / total[key] for key, count in strata.items())
        too_much = sum(count * count / total[key] for key, count in strata.items()) / 2
        if want > too_much:
            chosen.add(group)
            taken += strata
    return Split(
        [record for record in dataset.records if group_of[record.name] not in chosen],
        [record for record in dataset.records if group_of[record.name] in chosen],
        group_of,
        f"{fraction:.0%} of the groups, seed {seed}",
    )


def _strata(records: list[Record]) -> Counter[tuple[str, str]]:
    """Source × leaf, and the source as a whole: leaves rarer than folds would else all go to the first ones."""
    return Counter(key for record in records for key in ((record.source, record.leaf), (record.source, "")))


def _order(members: dict[str, list[Record]], seed: int) -> list[str]:
    """Groups in random order, but large ones first, while there is room to even them out."""
    order = sorted(members)
    Random(seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    return sorted(order, key=lambda group: -len(members[group]))


def _given(dataset: Dataset, path: Path) -> Split:
    said = dict[str, dict[str, str]]()
    for row in rows(path, "image", "group_id", "split"):
        name, part = row["image"], row["split"]
        if plain(name) in said:
            raise StartupError(f"{path} has more than one row for {name}.")
        if part not in (TRAIN, VALIDATION, TEST):
            raise StartupError(f"{path}: the split of {name} is {part!r}, none of train, val and test.")
        said[plain(name)] = row
    left_out = [record.name for record in dataset.records if plain(record.name) not in said]
    if left_out:
        raise StartupError(f"{path} has no row for {len(left_out)} labelled images, for example {left_out[0]}.")
    own, row_of = groups(dataset), {record.name: said[plain(record.name)] for record in dataset.records}
    # The file's groups know more (near-duplicates found by eye or hash), ours guard against a faulty file: join both.
    joined = _join({name: (known(row["group_id"]) or name, own[name]) for name, row in row_of.items()})
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in dataset.records:
        parts[row_of[record.name]["split"]].append(record)
    return Split(parts[TRAIN], parts[VALIDATION], joined, path.name)


def _join(pairs: dict[str, tuple[str, str]]) -> dict[str, str]:
    nodes = Dataset(
        [Record(name, Path(), "NV", "", "", lesion=f"a:{a}", patient=f"b:{b}") for name, (a, b) in pairs.items()]
    )
    return groups(nodes)
