"""What a check can find: stable codes with a severity and an explanation, and the report that collects them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")

CODES: Final[dict[str, tuple[Severity, str]]] = {
    # Files and pixels. `image_*` codes of `dermserve.errors` are used as they are.
    "image_missing": ("error", "A label row without an image file."),
    "image_ambiguous": ("error", "Several files could be the image of one id."),
    "image_undecodable": ("error", "The image is truncated or corrupt."),
    "image_unreadable": ("error", "The file system gives no bytes for this file."),
    "image_empty": ("error", "The file holds no bytes."),
    "image_too_large": ("error", "More bytes or pixels than are accepted anywhere in dermserve."),
    "image_too_small": ("error", "Too few pixels to be scored."),
    "image_invalid": ("error", "The image is refused."),
    "unsupported_media_type": ("error", "Neither JPEG, PNG nor DICOM, whatever its name says."),
    "image_blank": ("warning", "The image is one even colour."),
    "dimensions_odd": (
        "warning",
        "Unlike nearly all images of its set in size, or more than three times as long as wide.",
    ),
    "suffix_wrong": ("note", "The file's name promises another format than its bytes hold; it is read all the same."),
    "images_enlarged": ("note", "Images smaller than the 300 pixels the network sees (reduced copies)."),
    "images_unused": ("error", "Images that only a table of no known kind names: training does not use that set."),
    "label_missing": ("warning", "An image file in a labelled set that no label row names; training does not use it."),
    "image_unlisted": ("note", "An image outside every labelled set; training does not use it."),
    # The same picture twice.
    "duplicate_file": ("error", "The same bytes under another name, and no duplicates list says so."),
    "duplicate_pixels": ("error", "The same pixels in other bytes under another name, and no duplicates list says so."),
    "near_duplicate": (
        "warning",
        "Nearly the same picture (scaled, re-compressed, turned or mirrored) in another group.",
    ),
    "duplicate_known": ("note", "The same or nearly the same picture, and a lesion, patient, list or group says so."),
    "copy_differs": ("warning", "Two files of one id show different pictures."),
    "duplicate_marked": ("note", "Rows marked as duplicates (tfrecord −1), which training leaves out."),
    # Labels.
    "label_row_repeated": ("error", "Two rows of one table name the same image."),
    "label_classes": ("error", "A row does not name exactly one class, or a value is no number."),
    "label_unknown": ("error", "A diagnosis or code that no leaf is known for."),
    "label_unusable": ("note", "Images of the class UNK: they have no leaf, and training leaves them out."),
    "label_contradicts_target": ("error", "Diagnosis, benign_malignant and target of one row do not agree."),
    "label_conflict_tables": ("error", "Two tables give one image different diagnoses."),
    "label_conflict_lesion": ("error", "Photographs of one lesion carry different diagnoses."),
    "label_conflict_duplicate": ("error", "The same picture, or a listed pair, carries different diagnoses."),
    "label_conflict_similar": ("warning", "Nearly the same picture carries different diagnoses."),
    "label_not_official": ("error", "The label differs from the official table of the set."),
    "labelled_twice": ("note", "Images that several tables label alike."),
    # Groups.
    "group_crosses": ("error", "Images of one patient, lesion or picture stand on both sides of a division."),
    "group_crosses_similar": ("warning", "Nearly the same picture stands on both sides of a division."),
    "test_image_in_training": ("error", "An image of a test set is labelled for training, too."),
    "split_row_repeated": ("error", "Two rows of splits.csv name the same image."),
    "split_missing": ("error", "A labelled image without a row in splits.csv; training refuses that."),
    "split_without_label": ("warning", "A row of splits.csv whose image no table labels."),
    "split_group_differs": ("warning", "One lesion or patient with several group_ids in splits.csv."),
    "split_unknown": ("error", "A part other than train, val and test; training refuses the division."),
    "fold_invalid": ("error", "A tfrecord that is no whole number of −1 or more."),
    # The rest of the tables.
    "metadata_missing": ("error", "A row of the ground truth without a row in the metadata; training refuses that."),
    "metadata_row_repeated": ("error", "Two rows of metadata disagree about one image."),
    "lesions_missing": ("error", "No metadata of a ground truth tells lesions: they could not be kept together."),
    "metadata_invalid": ("warning", "An age, sex or site that the ISIC Archive does not accept."),
    "metadata_without_label": ("note", "A row of the metadata whose image no table labels."),
    "metadata_differs": ("warning", "One lesion or patient with two sexes, patients or very different ages."),
    "table_unreadable": ("error", "A table that cannot be read as CSV in UTF-8."),
    "table_empty": ("error", "A table without rows: nothing that it should tell is used."),
    "table_incomplete": (
        "error",
        "A table that is none of those known, but close: columns are missing or split otherwise.",
    ),
    "folder_unreadable": ("error", "A folder that cannot be listed."),
    "table_unknown": ("note", "A table that is none of those known; it is not used."),
    "table_absent": ("note", "Groups cannot be known in full without this table."),
}
"""Code → severity and meaning. Codes never change their meaning; new ones may come."""


@dataclass(frozen=True)
class Finding:
    """One thing found. `files`: images by path below the checked folder, or ids where there is no file."""

    code: str
    files: tuple[str, ...]
    detail: str
    severity: Severity


def printable(name: str | Path) -> str:
    """Text that can be written: bytes of a file name that are no UTF-8 are escaped."""
    return str(name).encode(errors="backslashreplace").decode()


@dataclass
class Report:
    """Everything found below `root`. `facts` are counts of what was looked at; `allowed` codes count as notes."""

    root: Path
    allowed: frozenset[str] = frozenset()
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)

    def add(self, code: str, files: str | Path | Iterable[str | Path], detail: str) -> None:
        """Record a finding; paths below the root are shown relative to it."""
        several = [files] if isinstance(files, str | Path) else files
        shown = tuple(printable(self.shown(file)) for file in several)
        severity: Severity = "note" if code in self.allowed else CODES[code][0]
        self.findings.append(Finding(code, shown, printable(detail), severity))

    def shown(self, file: str | Path) -> str:
        """A path as the report shows it."""
        if isinstance(file, Path) and file.is_relative_to(self.root):
            return str(file.relative_to(self.root))
        return str(file)

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def counts(self) -> list[tuple[str, Severity, int]]:
        """(code, severity, count), errors first, then in the order of `CODES`."""
        found = Counter((finding.code, finding.severity) for finding in self.findings)
        order = list(CODES)
        rows = [(code, severity, count) for (code, severity), count in found.items()]
        return sorted(rows, key=lambda row: (SEVERITIES.index(row[1]), order.index(row[0])))

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "root": printable(self.root),
            "facts": self.facts,
            "errors": self.errors,
            "counts": {code: count for code, _, count in self.counts()},
            "findings": [asdict(finding) for finding in self.findings],
        }
