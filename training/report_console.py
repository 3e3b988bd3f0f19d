"""What `dermserve evaluate` prints, and the steps of `--write-card`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import CARD_PATH, Estimate, LeafResults
from dermserve.settings import REPOSITORY_ROOT, Settings
from training.metrics import FIGURES
from training.report import NO_PARTIAL_AUC, Found
from training.scores import Joined

PAGE = REPOSITORY_ROOT / "docs/model-card.md"
_SUBGROUP_COLUMNS = ("roc_auc", "sensitivity_95: sensitivity", "sensitivity_95: specificity", "calibration_error")


def served_card() -> Path | None:
    """The card of the model repository of the settings, None where there is none."""
    path = Settings().model_repository / CARD_PATH
    return path if path.exists() else None


def show(console: Console, found: dict[str, Found], joined: Joined, *, has_card: bool) -> None:
    """Print the tables of one data set and what a reader must know about them."""
    whole = found[joined.images.name]
    console.print(table(whole))
    for part in [
        subgroup_table("source", {name.split("/")[-1]: _flat(one) for name, one in found.items() if one is not whole}),
        *(subgroup_table(kind, members) for kind, members in whole.evaluation.subgroups.items()),
    ]:
        if part is not None:
            console.print(part)
    lines = list(whole.evaluation.not_measured)
    if joined.left_out:
        lines.append(f"Left out, in one of the files only: {joined.left_out} images.")
    if not has_card:
        lines.append("No model card, hence no operating points (--card).")
    for line in [*lines, *joined.notes]:
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


def subgroup_table(kind: str, members: dict[str, dict[str, Estimate]]) -> Table | None:
    """A row for each subgroup; None where there is none."""
    if not members:
        return None
    table = Table(title=f"by {kind}", title_justify="left")
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
    from training import report_card, report_served

    repository = Settings().model_repository
    page = page or PAGE
    if not page.parent.is_dir():
        raise StartupError(f"{page} cannot be written: there is no folder {page.parent}.")
    report_card.require_plots()
    urls = tuple(part.strip() for part in url.split(",")) if url else Settings().triton_urls
    card, found, images = report_served.measure(repository, data, urls, bootstrap=bootstrap, keep=keep)
    for name, one in found.items():
        console.print(f"\n[bold]{name}[/bold]: {one.evaluation.role}", highlight=False, soft_wrap=True)
        console.print(table(one))
        for kind, members in one.evaluation.subgroups.items():
            console.print(subgroup_table(kind, members))
        if one.evaluation.leaves is not None:
            console.print(confusion_table(one.evaluation.leaves))
        for line in one.evaluation.not_measured:
            if line != NO_PARTIAL_AUC or one is next(iter(found.values())):
                console.print(line, highlight=False, soft_wrap=True)
    written = [card.write(repository), *report_card.write_page(card, found, images, page)]
    for path in written:
        console.print(f"{path} is written", highlight=False, soft_wrap=True)


def _flat(found: Found) -> dict[str, Estimate]:
    sides = ("sensitivity", "specificity")
    return found.metrics | {
        f"{name}: {side}": getattr(point, side) for name, point in found.points.items() for side in sides
    }


def _short(column: str) -> str:
    names = {"roc_auc": "ROC-AUC", "calibration_error": "calibration error"}
    return names.get(column, column.replace("sensitivity_95: ", "") + " at sensitivity_95" if ":" in column else column)
