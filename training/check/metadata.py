"""Ages, sexes and sites: each row against the ISIC Archive's own rules, and rows of one lesion or patient together."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from training.check.findings import Report
from training.check.reading import Row
from training.check.tables import Tables
from training.layouts import known

_SITES = ("anatom_site_general", "anatom_site_general_challenge")
_AGES = ("age_approx", "age")
_YEARS_APART = 10.0


def check(found: Tables, report: Report) -> None:
    """Add what is wrong with the metadata to the report."""
    labelled = {entry.id for entry in found.entries}
    spare: dict[str, list[str]] = defaultdict(list)
    for path, line, name, row in found.metadata:
        if name not in labelled:
            spare[path.name].append(name)
        fault = _fault(_first(row, _AGES), _first(row, ("sex",)), _first(row, _SITES))
        if fault:
            report.add("metadata_invalid", name, f"{path.name} line {line}: {fault}")
    for table, names in spare.items():
        report.add("metadata_without_label", names, f"{len(names)} rows of {table}")
    kaggle = any(entry.dataset == "isic2019" and found.kinds[entry.table] == "isic2020" for entry in found.entries)
    if kaggle and not found.of("metadata"):
        report.add("table_absent", "ISIC_2019_Training_Metadata.csv", "it holds the lesions of ISIC 2019")
    if any(entry.dataset == "isic2020" for entry in found.entries) and not found.of("duplicates"):
        report.add("table_absent", "ISIC_2020_Training_Duplicates.csv", "425 pairs of ISIC 2020 show the same picture")
    _together(found, report)


def _together(found: Tables, report: Report) -> None:
    lesion_of = {entry.id: entry.lesion for entry in found.entries if entry.lesion}
    patient_of = {entry.id: entry.patient for entry in found.entries if entry.patient}
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    names: dict[str, set[str]] = defaultdict(set)
    for _, _, name, row in found.metadata:
        keys = [f"{what} {of[name]}" for what, of in (("lesion", lesion_of), ("patient", patient_of)) if name in of]
        for key in keys:
            names[key].add(name)
            for what, value in (("sex", _first(row, ("sex",))), ("age", _first(row, _AGES))):
                if value:
                    seen[key][what].add(value)
            if key.startswith("lesion") and name in patient_of:
                seen[key]["patient"].add(patient_of[name])
    for key, values in seen.items():
        faults = [what for what in ("sex", "patient") if len(values[what]) > 1]
        if key.startswith("lesion") and _spread(values["age"]) > _YEARS_APART:
            faults.append("age")
        for what in faults:
            report.add("metadata_differs", sorted(names[key]), f"{key}: {what} {' and '.join(sorted(values[what]))}")


def _spread(ages: set[str]) -> float:
    try:
        years = [float(age) for age in ages]
    except ValueError:
        return 0.0  # reported as invalid already
    return max(years) - min(years) if years else 0.0


@cache
def _fault(age: str | None, sex: str | None, site: str | None) -> str:
    """What the ISIC Archive's own check (`isic-metadata`) says about a row; rows repeat, so answers are kept."""
    from isic_metadata.metadata import MetadataRow
    from pydantic import ValidationError

    try:
        years = None if age is None else float(age)
    except ValueError:
        return f"age {age!r}"
    if years is not None and not 0 <= years <= 120:
        return f"age {age}"
    values = {"age": None if years is None else round(years), "sex": sex}
    if site != "torso":  # ISIC 2020 does not tell front from back
        values["anatom_site_general"] = site
    try:
        MetadataRow(**{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, fault['loc']))} {fault.get('input')!r}" for fault in error.errors())
    return ""


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    """The value of the first of the columns that are there."""
    return next((known(row[column]) for column in columns if column in row), None)
