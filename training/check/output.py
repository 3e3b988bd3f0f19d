"""The report for people: a table for the terminal and a Markdown page that lists every finding."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from rich.table import Table

from training.check.findings import CODES, Finding, Report, printable

_EXAMPLES = 2
_SHOWN = 2
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def table(report: Report) -> Table:
    """Counts per code with a few examples."""
    facts = ", ".join(f"{count:,} {what}" for what, count in report.facts.items())
    found = Table(title=f"{printable(report.root)}: {facts}", title_justify="left")
    for name in ("severity", "code", "count", "what it means, and for example"):
        found.add_column(name, justify="right" if name == "count" else "left")
    for code, severity, count in report.counts():
        findings = [finding for finding in report.findings if (finding.code, finding.severity) == (code, severity)]
        text = "\n".join([CODES[code][1], *(f"· {_short(finding)}" for finding in findings[:_EXAMPLES])])
        found.add_row(f"[{_COLOURS[severity]}]{severity}[/]", code, f"{count:,}", text.replace("[", r"\["))
    return found


def markdown(report: Report) -> str:
    """Every finding, by code."""
    lines = [f"# Data check of `{printable(report.root)}`", ""]
    lines += [f"- {count:,} {what}" for what, count in report.facts.items()]
    lines += ["", "| severity | code | count | meaning |", "|---|---|---:|---|"]
    lines += [f"| {severity} | `{code}` | {count:,} | {CODES[code][1]} |" for code, severity, count in report.counts()]
    for code, severity, count in report.counts():
        lines += ["", f"## {code} ({severity}, {count:,})", "", CODES[code][1], ""]
        lines += [
            f"- {_line(finding)}" for finding in report.findings if (finding.code, finding.severity) == (code, severity)
        ]
    return "\n".join(lines) + "\n"


def write(report: Report, path: Path, *, as_json: bool) -> None:
    """Write the report to `path`."""
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False) if as_json else markdown(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_pairs(report: Report, path: Path) -> int:
    """Write pairs of the same or nearly the same picture that nothing accounts for, as a duplicates list.

    Returns how many there are.
    """
    kinds = ("duplicate_file", "duplicate_pixels", "near_duplicate")
    pairs = [[Path(file).stem for file in finding.files] for finding in report.findings if finding.code in kinds]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image_name_1", "image_name_2"], *pairs])
    return len(pairs)


def _line(finding: Finding) -> str:
    return f"{', '.join(finding.files)}: {finding.detail}"


def _short(finding: Finding) -> str:
    shown = ", ".join(file.rsplit("/", 1)[-1] for file in finding.files[:_SHOWN])
    more = f" and {len(finding.files) - _SHOWN} more" if len(finding.files) > _SHOWN else ""
    return f"{shown}{more}: {finding.detail}"
