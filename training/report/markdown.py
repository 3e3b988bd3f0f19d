"""Markdown of the model card: tables, pictures and figures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dermserve.model_card import Estimate

Links = Mapping[str, Mapping[str, str]]
"""Plots by data set and kind, relative to the page."""


def cell(figure: Estimate | None) -> str:
    """Value and interval; a dash where it was not measured."""
    return "–" if figure is None else f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def percents(figure: Estimate) -> str:
    """The interval in whole per cent, without the sign."""
    return f"{100 * figure.low:.0f}–{100 * figure.high:.0f}"


def plain(value: object) -> str:
    """A number with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown themselves."""
    numbers = ["---"] * len(head)
    lines = [head, numbers, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def picture(title: str, kinds: Mapping[str, str], kind: str) -> str:
    """The plot of a kind, nothing where it was not drawn."""
    return f"![{title}]({kinds[kind]})" if kind in kinds else ""


def join(*parts: str) -> str:
    """Paragraphs; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)
