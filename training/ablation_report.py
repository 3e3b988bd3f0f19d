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
from training.ablation import CLEAN, POINT, Row, Validation, Weights, to_json
from training.artifacts import KINDS, draw
from training.pixels import ShowProgress

MOST_DRIFT: Final = 0.05
"""Largest median |Δ P(melanoma)| that a drawn artefact may cause."""
LEAST_GAIN: Final = 0.005
"""Removal becomes the default only if it gains at least so much mean ROC-AUC on drawn images, and loses none on clean ones."""


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


def write(path: Path, rows: Sequence[Row], runs: Sequence[Weights], found: Validation, seed: int) -> None:
    """Write the page `path`, and beside it `images/artifacts.png`, `images/artifacts-drawn.png` and the rows as JSON."""
    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    _examples().save(folder / "artifacts-drawn.png", optimize=True)
    _plot(rows, folder / "artifacts.png")
    (path.with_suffix(".json")).write_text(to_json(rows))
    lines = [
        "# Artefacts: what they do to a score, and what led to the default",
        "",
        "Made by `dermserve artifacts --out docs/artifacts.md`; the figures are in `artifacts.json`.",
        "",
        f"Each artefact is drawn on {len(found.truth)} validation images ({int(found.truth.sum())} melanomas, seed {seed}), "
        "whatever their diagnosis, before decoding's frame crop. *Drift* is the absolute change of the melanoma "
        "probability of the same image, *changed* the share of images that move across the threshold of the operating "
        f"point `{POINT}` of those weights, *ΔAUC* the change of ROC-AUC against the same images without the artefact, "
        "with a 95 % interval (paired bootstrap over lesions and patients).",
        "",
        "![Every kind of artefact on drawn lesions](images/artifacts-drawn.png)",
        "",
        "The lesions in this picture are drawn as well (`dermserve sample`).",
        "",
        "| weights | trained with drawn artefacts on |",
        "|---|---|",
        *(f"| `{run.name}` | {run.artifacts:.0%} of the images |" for run in runs),
        "",
        "![Drift by artefact](images/artifacts.png)",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * 3}{'---:|' * (len(_COLUMNS) - 3)}",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
        "## What it says",
        "",
        *(f"- {sentence}" for sentence in conclusions(rows, runs)),
        "",
    ]
    path.write_text("\n".join(lines))


def conclusions(rows: Sequence[Row], runs: Sequence[Weights]) -> list[str]:
    """Sentences that follow from the rows by rules that were fixed before they were measured."""
    found = []
    for run in runs:
        drawn = [row for row in rows if row.weights == run.name and row.kind != CLEAN]
        plain = [row for row in drawn if not row.removed]
        worst = max(plain, key=lambda row: row.drift_median)
        verdict = "within" if worst.drift_median < MOST_DRIFT else "beyond"
        found.append(
            f"`{run.name}`: the largest median drift without removal is {worst.drift_median:.3f} ({worst.kind}), {verdict} "
            f"the bound of {MOST_DRIFT}; the largest 95th percentile is "
            f"{max(row.drift_95 for row in plain):.3f}, mean ROC-AUC over the drawn sets {_mean_auc(plain):.4f}."
        )
        gain = _mean_auc([row for row in drawn if row.removed]) - _mean_auc(plain)
        clean = {row.removed: row.auc for row in rows if row.weights == run.name and row.kind == CLEAN}
        keep = gain >= LEAST_GAIN and clean[True] >= clean[False]
        found.append(
            f"`{run.name}`: removal changes that mean by {gain:+.4f} and the ROC-AUC of images without a drawn artefact by "
            f"{clean[True] - clean[False]:+.4f}. The rule for making it the default (at least +{LEAST_GAIN} and no loss) is "
            f"{'met' if keep else 'not met'}."
        )
    by_use = sorted(runs, key=lambda run: run.artifacts)
    if len(runs) > 1 and by_use[0].artifacts < by_use[-1].artifacts:
        without, with_ = (_mean_drift(rows, run) for run in (by_use[0], by_use[-1]))
        found.append(
            f"Mean of the median drifts without removal: {without:.4f} for `{by_use[0].name}`, trained with drawn artefacts "
            f"on {by_use[0].artifacts:.0%} of the images, {with_:.4f} for `{by_use[-1].name}` with "
            f"{by_use[-1].artifacts:.0%}."
        )
    return found


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
    change = f"{row.auc_change:+.4f} ({row.auc_change_low:+.4f} … {row.auc_change_high:+.4f})"
    clean = row.kind == CLEAN
    return (
        row.weights,
        "on" if row.removed else "off",
        row.kind,
        f"{row.auc:.4f}",
        "" if clean else change,
        "" if clean else f"{row.drift_median:.4f}",
        "" if clean else f"{row.drift_95:.4f}",
        "" if clean else f"{row.changed:.1%}",
    )


def _mean_auc(rows: Sequence[Row]) -> float:
    return float(np.mean([row.auc for row in rows]))


def _mean_drift(rows: Sequence[Row], run: Weights) -> float:
    return float(
        np.mean([row.drift_median for row in rows if row.weights == run.name and row.kind != CLEAN and not row.removed])
    )


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
