"""What a run without a journal left: its rows become the journal's first, so that --resume goes on behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dermserve.labels import CSV_HEADER
from dermserve.predict.journal import Journal
from dermserve.predict.outcome import Done, Outcome, Refusal, Scores
from dermserve.predict.tables import ABSTAINED_HEADER, ERRORS_HEADER, abstained_path, errors_path


def take_over(journal: Journal, output: Path | None, *, full: bool) -> None:
    """Begin a journal with the whole rows of a CSV and of what stands beside it.

    A mark of abstention without a row was left by an interruption, and its image comes again. Where the table of marks is
    missing, the journal remembers how many rows nobody looked at (`unchecked`).

    Args:
        journal: an empty one.
        output: the CSV; None where none is asked for.
        full: whether this run asks for all that a result holds.
    """
    outcomes = {} if output is None else _outcomes(output)
    scored = sum(isinstance(outcome, Scores) for outcome in outcomes.values())
    looked_at = output is None or abstained_path(output).exists()
    facts = {"begun": 1, "full": int(full and not scored), "unchecked": 0 if looked_at else scored}
    threshold = None if output is None else _threshold(output)
    journal.keep(
        ((name, Done(0, outcome, None)) for name, outcome in outcomes.items()), facts | {"threshold": threshold}
    )


def _outcomes(output: Path) -> dict[str, Outcome]:
    marks = {row[0]: row[1] for row in _rows(abstained_path(output), ABSTAINED_HEADER)}
    outcomes: dict[str, Outcome] = {}
    for name, *cells in _rows(output, CSV_HEADER):
        if (scores := _scores(cells, marks.get(name))) is not None:
            outcomes.setdefault(name, scores)
    for name, code, detail in _rows(errors_path(output), ERRORS_HEADER):
        outcomes.setdefault(name, Refusal(code, detail))
    return outcomes


def _threshold(output: Path) -> float | None:
    """The one that the earlier rows were judged by, if any of them was abstained on."""
    for row in _rows(abstained_path(output), ABSTAINED_HEADER):
        with suppress(ValueError):
            return float(row[2])
    return None


def _scores(cells: list[str], ood: str | None) -> Scores | None:
    try:
        return Scores([float(cell) for cell in cells], None if not ood else float(ood), ood is not None)
    except ValueError:
        return None  # no row of ours: the image comes again


def _rows(path: Path, header: tuple[str, ...]) -> Iterator[list[str]]:
    """The whole rows of a table; the last line counts only with its end."""
    data = path.read_bytes() if path.is_file() else b""
    text = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")
    for row in csv.reader(io.StringIO(text, newline="")):
        if len(row) == len(header) and tuple(row) != header:
            yield row
