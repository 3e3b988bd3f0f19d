"""`docs/performance.md`, filled in from the results files, so that no figure is copied by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.exceptions import UndefinedError

from dermserve.errors import StartupError
from dermserve.model_card import ModelCard

TEMPLATE: Final = Path(__file__).with_name("performance.md.jinja")
"""The page's text; `results` in it are the files of the folder by name, `-` read as `_`."""


def write(results: Path, card: ModelCard, page: Path) -> None:
    """Fill the template in.

    Args:
        results: folder of the JSON files that the benchmarks wrote.
        card: whose parity gate is told.
        page: where the text goes.

    Raises:
        StartupError: a benchmark that the page speaks of has no file there.
    """
    found = {path.stem.replace("-", "_"): json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    environment = Environment(  # noqa: S701  Markdown, of our own figures
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters |= {"table": _table, "bounds": _bounds, "median": median}
    try:
        text = environment.get_template(TEMPLATE.name).render(results=found, parity=card.engines["openvino"].parity)
    except UndefinedError as error:
        raise StartupError(f"{results} lacks what the page tells: {error.message}. Run the benchmark first.") from error
    page.write_text(text)


def _table(
    rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str] = (), begins: str = ""
) -> str:
    """Rows as Markdown: `columns` by key with their heads, by default all as they are called; `begins`: only such rows."""
    chosen = {name: row for name, row in rows.items() if name.startswith(begins)}
    columns = columns or list(next(iter(chosen.values())))
    heads = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    lines = [["", *heads.values()], ["---"] * (len(heads) + 1)]
    lines += [[name, *(_cell(row.get(key)) for key in heads)] for name, row in chosen.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |")


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _bounds(result: Mapping[str, Any]) -> str:
    """Each bound of a result and whether it was held, but for that nothing failed, which the tables tell."""
    lines = []
    for bound in result["bounds"]:
        if "failed" not in bound["what"]:
            sign, verdict = "≥" if bound["at"] == "least" else "≤", "held" if bound["held"] else "**not held**"
            lines.append(f"- {bound['what']}: {bound['found']:.4g}, bound {sign} {bound['bound']:.4g}: {verdict}")
    return "\n".join(lines)
