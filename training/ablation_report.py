"""The ablation of artefacts as a table on the terminal, and as a page with a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dermserve import sample
from training.ablation import CLEAN, DRAWN, POINT, Ablation, Pair, Removal, Row, Validation, Weights, to_json
from training.artifacts import KINDS, draw
from training.pixels import ShowProgress

MOST_DRIFT: Final = 0.05
"""Largest median |Δ P(melanoma)| that a drawn artefact may cause."""
LEAST_GAIN: Final = 0.005
"""Removal becomes the default only if it gains at least so much mean ROC-AUC on drawn images; see `defaults`."""
_WORDS: Final = {"ruler": "a ruler", "patch": "a patch", "corners": "dark corners", "bubbles": "gel bubbles"}


@contextmanager
def progress(console: Console) -> Iterator[ShowProgress]:
    """A `ShowProgress` that draws a bar on `console`."""

    def show(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        yield from track(items, label, total=total, console=console)

    yield show


def table(rows: Sequence[Row]) -> Table:
    """All rows, one line each."""
    found = Table(title="Drawn artefacts on validation images", title_justify="left")
    for column in _COLUMNS:
        found.add_column(column, justify="left" if column in _COLUMNS[:3] else "right")
    for row in rows:
        found.add_row(*_cells(row))
    return found


def write(path: Path, measured: Ablation, runs: Sequence[Weights], found: Validation, seed: int) -> None:
    """Write the page `path`, and beside it `images/artifacts.png`, `images/artifacts-drawn.png` and the rows as JSON."""
    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    _examples().quantize(256).save(folder / "artifacts-drawn.png", optimize=True)
    _plot(measured.rows, folder / "artifacts.png")
    (path.with_suffix(".json")).write_text(to_json(measured))
    lines = [
        "# Artefacts: what they do to a score, and what led to the default",
        "",
        "Made by `dermserve artifacts --out docs/artifacts.md`; the figures are in `artifacts.json`.",
        "",
        f"Each artefact is drawn on {len(found.truth)} validation images ({int(found.truth.sum())} melanomas, seed {seed}), "
        "whatever their diagnosis, before decoding's frame crop. *Drift* is the absolute change of the melanoma "
        "probability of the same image, *changed* the share of images that move across the threshold of the operating "
        f"point `{POINT}` of those weights, *ΔAUC* the change of ROC-AUC against the same images without the artefact, "
        "with a 95 % interval (paired bootstrap over lesions and patients). None of the weights was trained on these "
        "images. *Removal* on: hair is painted over before scoring, also for weights that were trained without it.",
        "",
        "![Every kind of artefact on drawn lesions](images/artifacts-drawn.png)",
        "",
        "The lesions in this picture are drawn as well (`dermserve sample`).",
        "",
        "| weights | trained on | with drawn artefacts on | with removal |",
        "|---|---|---|---|",
        *(f"| `{run.name}` | {run.passes} | {run.artifacts:.0%} of the images | {_yes(run.removes)} |" for run in runs),
        "",
        "![Drift by artefact](images/artifacts.png)",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * 3}{'---:|' * (len(_COLUMNS) - 3)}",
        *(f"| {' | '.join(_cells(row))} |" for row in measured.rows),
        "",
        "What removal changes: ROC-AUC with it minus without it, on the same images.",
        "",
        "| weights | trained with removal | artefact | ΔAUC (95 %) |",
        "|---|---|---|---:|",
        *(
            f"| {run.name} | {_yes(run.removes)} | {one.kind} | {_change(one)} |"
            for run in runs
            for one in measured.removal
            if one.weights == run.name
        ),
        "",
        "## What it says",
        "",
        *(f"- {sentence}" for sentence in conclusions(measured, runs)),
        "",
        defaults(measured, runs),
        "",
    ]
    path.write_text("\n".join(lines))


def conclusions(measured: Ablation, runs: Sequence[Weights]) -> list[str]:
    """For each run how far artefacts move it and what removal changes; for each pair what drawing them changes."""
    return [
        *(_drift(measured.rows, run) for run in runs),
        *(_removal(measured, run) for run in runs),
        *(
            f"Mean of the median drifts: {pair.drift_drawn:.4f} for `{pair.drawn}`, trained with drawn artefacts, "
            f"{pair.drift_plain:.4f} for `{pair.plain}`, trained without; ROC-AUC on images without a drawn artefact "
            f"differs by {_change(pair)}."
            for pair in measured.pairs
        ),
    ]


def defaults(measured: Ablation, runs: Sequence[Weights]) -> str:
    """The defaults that follow from what was measured, by rules that were fixed before."""
    removes = all(_removal_gains(measured, run) for run in runs)
    found = (
        f"**Defaults that follow.** `remove_artifacts`: {'on' if removes else 'off'}. It would be on only if for all of "
        f"these weights removal raised the mean ROC-AUC of the drawn images by at least {LEAST_GAIN}, and the intervals "
        "of this and of its change on images without a drawn artefact lay above 0. "
    )
    if not measured.pairs:
        return found + (
            "`artifacts` (drawing them in training): not decided here; it takes a run with and one without, equal in all else."
        )
    draws = all(pair.drift_drawn < pair.drift_plain and pair.auc_change_high >= 0 for pair in measured.pairs)
    return found + (
        f"`artifacts` (drawing them in training): {'on' if draws else 'off'}. It is on if the weights trained with drawn "
        "artefacts have the smaller mean drift and their ROC-AUC on images without one is not significantly lower."
    )


def _drift(rows: Sequence[Row], run: Weights) -> str:
    """The run in the arm that it was trained for, which is the one that would be served."""
    mine = [row for row in rows if (row.weights, row.removed) == (run.name, run.removes) and row.kind != CLEAN]
    far = [f"{_word(row)} ({row.drift_median:.3f})" for row in mine if row.drift_median >= MOST_DRIFT]
    near = [_word(row) for row in mine if row.drift_median < MOST_DRIFT]
    parts = []
    if near:
        parts.append(
            f"drawing {_listed(near, 'or')} moves the melanoma probability by less than {MOST_DRIFT} in the median"
        )
    if far:
        parts.append(f"the median change reaches {MOST_DRIFT} with {_listed(far, 'and')}")
    tail = _listed([f"{_word(row)} ({row.drift_95:.3f})" for row in mine], "and")
    return (
        f"`{run.name}`, scored {'with' if run.removes else 'without'} removal as it was trained: {'; '.join(parts)}. "
        f"One image in twenty moves by more than (95th percentile): {tail}."
    )


def _removal(measured: Ablation, run: Weights) -> str:
    changes = _changes(measured, run)
    return (
        f"`{run.name}`, trained {'with' if run.removes else 'without'} removal: removal at scoring changes the mean "
        f"ROC-AUC of the drawn images by {_change(changes[DRAWN])}, and that of images without a drawn artefact by "
        f"{_change(changes[CLEAN])}. The rule for making it the default is "
        f"{'met' if _removal_gains(measured, run) else 'not met'}."
    )


def _removal_gains(measured: Ablation, run: Weights) -> bool:
    changes = _changes(measured, run)
    drawn, clean = changes[DRAWN], changes[CLEAN]
    return drawn.auc_change >= LEAST_GAIN and drawn.auc_change_low > 0 and clean.auc_change_low > 0


def _changes(measured: Ablation, run: Weights) -> dict[str, Removal]:
    return {one.kind: one for one in measured.removal if one.weights == run.name}


_COLUMNS: Final = (
    "weights",
    "removal",
    "artefact",
    "ROC-AUC",
    "ΔAUC (95 %)",
    "drift, median",
    "drift, 95th percentile",
    "changed",
)


def _cells(row: Row) -> tuple[str, ...]:
    clean = row.kind == CLEAN
    return (
        row.weights,
        "on" if row.removed else "off",
        row.kind,
        f"{row.auc:.4f}",
        "" if clean else _change(row),
        "" if clean else f"{row.drift_median:.4f}",
        "" if clean else f"{row.drift_95:.4f}",
        "" if clean else f"{row.changed:.1%}",
    )


def _change(one: Row | Removal | Pair) -> str:
    return f"{one.auc_change:+.4f} ({one.auc_change_low:+.4f} … {one.auc_change_high:+.4f})"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _word(row: Row) -> str:
    return _WORDS.get(row.kind, row.kind)


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def _plot(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys((row.weights, row.removed) for row in rows))
    kinds = list(KINDS)
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    for number, (name, removed) in enumerate(arms):
        mine = {row.kind: row for row in rows if (row.weights, row.removed) == (name, removed)}
        places = np.arange(len(kinds)) + 0.7 * ((number + 0.5) / len(arms) - 0.5)
        median = [mine[kind].drift_median for kind in kinds]
        high = [mine[kind].drift_95 for kind in kinds]
        colour = colours[number % len(colours)]
        axes.hlines(places, median, high, color=colour, linewidth=1.5)
        axes.plot(high, places, "|", color=colour, markersize=8)
        label = f"{name}, removal {'on' if removed else 'off'}"
        axes.plot(median, places, "o" if removed else "s", color=colour, markersize=5, label=label)
    axes.axvline(MOST_DRIFT, color="0.4", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("|Δ P(melanoma)|: median (mark) to 95th percentile (bar); dashed: bound on the median")
    axes.set_title("How far a drawn artefact moves the score", loc="left")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _examples(columns: int = 5, side: int = 150) -> Image.Image:
    sheet = Image.new("RGB", (columns * side, len(KINDS) * side))
    for column in range(columns):
        lesion = sample.draw(100 + column)[:, 75:525]
        for row, kind in enumerate(KINDS):
            drawn = Image.fromarray(draw(kind, lesion, np.random.default_rng((row, column))))
            sheet.paste(drawn.resize((side, side), Image.Resampling.LANCZOS), (column * side, row * side))
    return sheet
