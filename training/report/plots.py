"""Plots of scores against the truth, made from numbers alone; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from dermserve.model_card import Estimate, LeafResults
from training.report.examine import Found, Scored
from training.report.metrics import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS: Final = ("roc", "precision_recall", "reliability", "scores", "confusion")
# Okabe and Ito's palette, which the common kinds of colour blindness tell apart; dashes and labels say the same again.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
_SIZE: Final = (5.4, 5.0)
_STYLE: Final = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "dermserve",
}


def draw_all(images: Scored, found: Found, folder: Path, prefix: str = "") -> dict[str, Path]:
    """Write ROC, precision-recall, reliability and score plots, and the leaves' confusion where it is known, as PNG.

    Args:
        images: the scored images.
        found: their figures, which stand in the titles.
        folder: made where it does not exist.
        prefix: of the files' names.

    Returns:
        The files by kind, some of `KINDS`.

    Raises:
        StartupError: matplotlib is not installed.
    """
    with _drawing():
        drawn = {
            "roc": roc(images, found),
            "precision_recall": precision_recall(images, found),
            "reliability": reliability(images, found),
            "scores": score_distribution(images, found),
        }
        if found.evaluation.leaves is not None:
            drawn["confusion"] = confusion(found.evaluation.leaves, images.name)
        return {kind: _save(figure, folder / f"{prefix}{kind}.png") for kind, figure in drawn.items()}


def draw_learning_curve(curve: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Write loss and validation ROC-AUC over training time; None where there is no curve. Raises as `draw_all`."""
    points = [point for point in curve if point.get("val_auc") is not None]
    if not points:
        return None
    with _drawing():
        return _save(learning_curve(points), path)


def roc(images: Scored, found: Found) -> Figure:
    """The ROC curve with the operating points on it."""
    figure, axes = _axes(f"{images.name}: ROC-AUC {_shown(found.metrics['roc_auc'])}")
    false_positives, true_positives, _ = roc_curve(images.truth, images.scores)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="chance")
    axes.plot(false_positives, true_positives, color=_BLUE, linewidth=2, label="melanoma against the rest")
    for marker, (name, point) in zip("osD^v", found.points.items(), strict=False):
        axes.plot(1 - point.specificity.value, point.sensitivity.value, marker, color=_ORANGE, markersize=7, label=name)
    _unit(axes, "1 − specificity (false alarms among the others)", "sensitivity (melanomas found)")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


def precision_recall(images: Scored, found: Found) -> Figure:
    """Precision against sensitivity, with the share of melanoma as the level of chance."""
    figure, axes = _axes(f"{images.name}: average precision {_shown(found.metrics['average_precision'])}")
    precision, recall, _ = precision_recall_curve(images.truth, images.scores)
    share = float(images.truth.mean())
    axes.axhline(share, color=_GREY, linestyle=":", label=f"chance: {share:.1%} melanoma")
    axes.step(recall, precision, where="post", color=_BLUE, linewidth=2, label="melanoma against the rest")
    _unit(axes, "sensitivity (melanomas found)", "precision (melanomas among the referred)")
    axes.legend(loc="upper right")
    return figure


def reliability(images: Scored, found: Found) -> Figure:
    """Share of melanoma against the mean probability in bins of equal mass, over a histogram of the probabilities."""
    title = f"{images.name}: expected calibration error {_shown(found.metrics['calibration_error'])}"
    figure: Figure
    figure, (upper, lower) = _pyplot().subplots(
        2, 1, figsize=(5.4, 5.6), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    upper.set_title(title, loc="left")
    means, shares, errors = reliability_bins(images.truth, images.scores)
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="perfectly calibrated")
    upper.errorbar(means, shares, yerr=errors, color=_BLUE, marker="o", capsize=2, label=f"{BINS} bins of equal mass")
    upper.set(ylabel="share of melanoma in the bin", ylim=(-0.02, 1.02))
    upper.legend(loc="upper left")
    lower.hist(images.scores, np.linspace(0, 1, 41).tolist(), color=_BLUE)
    lower.set(xlabel="predicted probability of melanoma", ylabel="images", xlim=(0, 1))
    return figure


def reliability_bins(
    truth: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and share of melanoma of each bin of equal mass, and Wilson's 95 % bounds as distances [2, bins]."""
    order = np.argsort(scores, kind="stable")
    bins = [rows for rows in np.array_split(order, BINS) if rows.size]
    means = np.array([scores[rows].mean() for rows in bins])
    shares = np.array([truth[rows].mean() for rows in bins])
    sizes, z = np.array([rows.size for rows in bins]), 1.96
    middle = (shares + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
    half = z / (1 + z**2 / sizes) * np.sqrt(shares * (1 - shares) / sizes + z**2 / (4 * sizes**2))
    bounds = np.stack([shares - (middle - half), middle + half - shares])
    return means, shares, np.clip(bounds, 0, None)


def score_distribution(images: Scored, found: Found) -> Figure:
    """The probabilities of melanomas and of the others, each as shares of their own number, with the thresholds."""
    positives, negatives = images.scores[images.truth], images.scores[~images.truth]
    figure, axes = _axes(f"{images.name}: probabilities of {len(positives):,} melanomas and {len(negatives):,} others")
    edges = np.linspace(0, 1, 41).tolist()
    axes.hist(negatives, edges, weights=_shares(negatives), color=_BLUE, alpha=0.45, label="others")
    axes.hist(
        positives, edges, weights=_shares(positives), histtype="step", color=_ORANGE, linewidth=2, label="melanomas"
    )
    for style, (name, point) in zip(("--", "-.", ":"), found.points.items(), strict=False):
        axes.axvline(point.threshold, color="black", linestyle=style, label=f"{name}, {point.threshold:.3f}")
    axes.set(xlabel="predicted probability of melanoma", ylabel="share of the images", xlim=(0, 1))
    axes.legend(loc="upper right")
    return figure


def confusion(leaves: LeafResults, name: str) -> Figure:
    """Counts of true leaf (rows) and most probable leaf (columns), coloured by share of the row."""
    counts = np.array(leaves.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure: Figure
    figure, axes = _pyplot().subplots(figsize=(6.6, 5.8), layout="constrained")
    axes.set_title(f"{name}: balanced accuracy {_shown(leaves.balanced_accuracy)}", loc="left")
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        colour = "black" if shares[row, column] > 0.55 else "white"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(LEAVES)), LEAVES, rotation=45, ha="right")
    axes.set_yticks(range(len(LEAVES)), LEAVES)
    axes.set(xlabel="most probable leaf", ylabel="true leaf")
    figure.colorbar(image, ax=axes, label="share of the true leaf", shrink=0.8)
    return figure


def learning_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and validation ROC-AUC over minutes; a line where the resolution changes."""
    figure: Figure
    figure, (upper, lower) = _pyplot().subplots(2, 1, figsize=(6.4, 5.2), sharex=True, layout="constrained")
    minutes = [point["minutes"] for point in points]
    best = max(points, key=lambda point: point["val_auc"])
    upper.set_title(
        f"ROC-AUC while training: at best {best['val_auc']:.3f} on {best['val_images']:,} validation images", loc="left"
    )
    upper.plot(minutes, [point["val_auc"] for point in points], color=_BLUE, marker="o")
    upper.set_ylabel("validation ROC-AUC")
    lower.plot(
        minutes, [_number(point.get("train_loss")) for point in points], color=_ORANGE, marker="s", label="training"
    )
    lower.plot(
        minutes, [_number(point.get("val_loss")) for point in points], color=_GREEN, marker="^", label="validation"
    )
    lower.set(xlabel="minutes of training", ylabel="loss")
    lower.legend(loc="upper right")
    shown = None
    for point in points:
        if point["resolution"] != shown:
            shown = point["resolution"]
            upper.annotate(
                f"{shown} px",
                (point["minutes"], 0.04),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                color=_GREY,
                bbox={"color": "white", "pad": 1.0},
            )
            for axes in (upper, lower):
                axes.axvline(point["minutes"], color=_GREY, linestyle=":", linewidth=1)
    return figure


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(len(values), 1 / max(1, len(values)))


def _axes(title: str) -> tuple[Figure, Axes]:
    figure, axes = _pyplot().subplots(figsize=_SIZE, layout="constrained")
    axes.set_title(title, loc="left")
    return figure, axes


def _unit(axes: Axes, across: str, up: str) -> None:
    axes.set(xlabel=across, ylabel=up, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _shown(figure: Estimate) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version in the file, a figure that has not changed is the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)
    return path


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _drawing() -> Any:
    try:
        return _pyplot().rc_context(_STYLE)
    except ImportError as error:
        raise StartupError("Plots need matplotlib: install the extra `training`, or leave out --plots.") from error
