"""What `dermserve evaluate` prints, and the steps of `--write-card`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import CARD_PATH, Estimate, LeafResults
from dermserve.settings import REPOSITORY_ROOT, Settings
from training.report.examine import Found
from training.report.metrics import FIGURES
from training.scores import Joined

PAGE = REPOSITORY_ROOT / "docs/model-card.md"
_SUBGROUP_COLUMNS = ("roc_auc", "sensitivity_95: sensitivity", "sensitivity_95: specificity", "calibration_error")


def served_card() -> Path | None:
    """The card of the model repository of the settings, None where there is none."""
    path = Settings().model_repository / CARD_PATH
    return path if path.exists() else None


def show(console: Console, found: dict[str, Found], joined: Joined, *, has_card: bool) -> None:
    """Print the tables of one data set and what a reader must know about them."""
    show_set(console, joined.images.name, found)
    lines = list(joined.notes)
    if joined.left_out:
        lines.append(f"Left out, in one of the files only: {joined.left_out} images.")
    if not has_card:
        lines.append("No model card, hence no operating points (--card).")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def show_set(console: Console, name: str, found: dict[str, Found]) -> None:
    """Print the figures of the data set `name` in `found`, of its sources and subgroups, and of its leaves."""
    whole = found[name]
    sources = {part.removeprefix(f"{name}/"): _flat(one) for part, one in found.items() if part.startswith(f"{name}/")}
    console.print(table(whole))
    for kind, members in ({"source": sources} | whole.evaluation.subgroups).items():
        if members:
            console.print(subgroup_table(kind, members))
    if whole.evaluation.leaves is not None:
        console.print(confusion_table(whole.evaluation.leaves))
    for line in whole.evaluation.not_measured:
        console.print(line, highlight=False, soft_wrap=True)


def table(found: Found) -> Table:
    """All figures of a data set."""
    size = found.metrics["roc_auc"]
    table = Table(
        title=f"{size.images} images, {size.positives} melanomas ({size.positives / size.images:.1%})",
        title_justify="left",
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    rows = [(FIGURES[name].title, figure) for name, figure in found.metrics.items()]
    for name, point in found.points.items():
        rows.append((f"{name} (≥ {point.threshold:.4f}): sensitivity", point.sensitivity))
        rows.append((f"{name} (≥ {point.threshold:.4f}): specificity", point.specificity))
    if found.evaluation.leaves is not None:
        rows.append(("balanced accuracy of the leaves", found.evaluation.leaves.balanced_accuracy))
    for title, figure in rows:
        table.add_row(title, f"{figure.value:.4f}", f"{figure.low:.4f} – {figure.high:.4f}")
    return table


def subgroup_table(kind: str, members: dict[str, dict[str, Estimate]]) -> Table:
    """A row for each subgroup."""
    table = Table(title=f"by {kind} (sensitivity and specificity at sensitivity_95)", title_justify="left")
    table.add_column(kind)
    table.add_column("images", justify="right")
    table.add_column("melanomas", justify="right")
    columns = [column for column in _SUBGROUP_COLUMNS if column in next(iter(members.values()))]
    for column in columns:
        table.add_column(_short(column), justify="right")
    for name, figures in members.items():
        size = figures["roc_auc"]
        cells = [
            f"{figures[column].value:.3f} ({figures[column].low:.3f}–{figures[column].high:.3f})" for column in columns
        ]
        table.add_row(name, f"{size.images}", f"{size.positives}", *cells)
    return table


def confusion_table(leaves: LeafResults) -> Table:
    """True leaf in rows, most probable leaf in columns, recall with its interval at the end."""
    table = Table(title="true leaf (rows), most probable leaf (columns)", title_justify="left")
    table.add_column("")
    for leaf in LEAVES:
        table.add_column("NOS" if leaf == "BENIGN_NOS" else leaf, justify="right")
    table.add_column("recall", justify="right")
    for leaf, row in zip(LEAVES, leaves.confusion, strict=True):
        recall = leaves.recall.get(leaf)
        shown = "" if recall is None else f"{recall.value:.2f} ({recall.low:.2f}–{recall.high:.2f})"
        table.add_row(leaf, *(str(count) for count in row), shown)
    return table


def write_card(
    data: Path, *, url: str | None, page: Path | None, keep: Path | None, bootstrap: int, console: Console
) -> None:
    """Measure the served model on `data`, put the figures into its card and write the page; prints what it found.

    Raises:
        StartupError: the data are not those of the weights, or the server does not serve the repository's weights.
        InferenceUnavailable: no server answers.
    """
    from training.report import card as report_card
    from training.report import served as report_served

    repository = Settings().model_repository
    page = page or PAGE
    if not page.parent.is_dir():
        raise StartupError(f"{page} cannot be written: there is no folder {page.parent}.")
    report_card.require_plots()
    urls = tuple(part.strip() for part in url.split(",")) if url else Settings().triton_urls
    card, found, images = report_served.measure(repository, data, urls, bootstrap=bootstrap, keep=keep)
    for name in images:
        console.print(f"\n[bold]{name}[/bold], {found[name].evaluation.role}", highlight=False, soft_wrap=True)
        show_set(console, name, found)
    written = [card.write(repository), *report_card.write_page(card, found, images, page)]
    for path in written:
        console.print(f"{path} is written", highlight=False, soft_wrap=True)


def _flat(found: Found) -> dict[str, Estimate]:
    sides = ("sensitivity", "specificity")
    return found.metrics | {
        f"{name}: {side}": getattr(point, side) for name, point in found.points.items() for side in sides
    }


def _short(column: str) -> str:
    """Headings that leave room for the figures; the operating point stands in the table above."""
    names = {"roc_auc": "ROC-AUC", "calibration_error": "calibration error"}
    return names.get(column, column.rsplit(": ", 1)[-1])
