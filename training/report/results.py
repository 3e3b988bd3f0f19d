"""The measured part of docs/model-card.md; every figure is read from the card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dermserve.labels import COLUMN_LEAVES, LEAF_NAMES, LEAVES
from dermserve.model_card import Estimate, Evaluation, ModelCard, OperatingPoint
from training.report.markdown import Links, cell, join, percents, picture, table
from training.report.metrics import BINS, FIGURES

_RARE: Final = 0.02
"""A share of melanoma among examined lesions that is nearer to a clinic's than that of the data sets."""
_POINT: Final = "sensitivity_95"
_KINDS: Final = {"sex": "Sex", "age": "Age in years", "site": "Site on the body"}


def results(card: ModelCard, plots: Links) -> str:
    """Every figure of every set, with the curves."""
    sets = list(card.metrics)
    names = [name for name in FIGURES if any(name in card.metrics[data] for data in sets)]
    rows = [["images", *(f"{_size(card, data).images:,}" for data in sets)]]
    rows.append(["melanomas", *(f"{_size(card, data).positives:,}" for data in sets)])
    rows += [[FIGURES[name].title, *(cell(card.metrics[data].get(name)) for data in sets)] for name in names]
    roles = [f"- `{data}`: {one.role}." for data, one in card.evaluations.items() if "/" not in data]
    missing = _sentences(line for one in card.evaluations.values() for line in one.not_measured)
    figures = [picture(f"{data}: {kind.replace('_', ' ')}", plots[data], kind) for data in plots for kind in _MAIN]
    return join(
        "## Results",
        "\n".join(roles),
        table(["", *(f"`{data}`" for data in sets)], rows),
        "Partial AUC: area under the part of the ROC curve above 80 % sensitivity (0.18 by chance, 1 at best), computed "
        "by the ISIC challenges' own `isic-challenge-scoring`."
        if any("partial_auc_above_80_sensitivity" in card.metrics[data] for data in sets)
        else "",
        missing,
        "\n".join(figures),
    )


_MAIN: Final = ("roc", "precision_recall", "scores")


def points(card: ModelCard) -> str:
    """What each operating point means for a hundred patients."""
    parts = ["## Operating points", "Refer when the melanoma probability is at least the threshold. In words:"]
    lines = []
    for name, point in card.operating_points.items():
        lines.append(f"- **`{name}`**, threshold {point.threshold:.4f}.")
        for data, one in card.evaluations.items():
            if "/" not in data and name in one.operating_points:
                lines.append(f"  - `{data}`: {_words(one.operating_points[name])}")
        if not card.evaluations:
            lines.append(f"  - {point.data}: {_words(point)}")
    parts.append("\n".join(lines))
    parts.append(
        f"The last number of each line is what follows by Bayes' rule where {_RARE:.0%} of the lesions are melanomas, if "
        "sensitivity and specificity were the same there. They need not be: spectrum, devices and skin differ."
    )
    return join(*parts)


def _words(point: OperatingPoint) -> str:
    found, alarm = point.sensitivity.value, 1 - point.specificity.value
    hits, alarms = found * _RARE, alarm * (1 - _RARE)
    right = f"{hits / (hits + alarms):.1%}" if hits + alarms else "none"
    return (
        f"of 100 melanomas it refers {100 * found:.0f} ({percents(point.sensitivity)}) and misses {100 * (1 - found):.0f}; "
        f"of 100 other lesions it refers {100 * alarm:.0f} (specificity {cell(point.specificity)}); "
        f"at {_RARE:.0%} melanoma, {right} of the referred would be melanomas."
    )


def calibration(card: ModelCard, plots: Links) -> str:
    """How the calibration error is defined, and the reliability plots."""
    biases = card.calibration_bias
    shifts = f" and one bias a leaf ({min(biases.values()):+.2f} to {max(biases.values()):+.2f})" if biases else ""
    return join(
        "## Calibration",
        f"One temperature ({card.temperature:.3f}){shifts}, fitted on the validation images, whose own calibration error "
        "is optimistic for that. Expected calibration error: mean of "
        f"|share of melanoma − mean probability| over {BINS} bins of P(melanoma), weighted by their images. Bins hold the "
        "same number of images each; bins of equal width are given for comparison. Chance alone leaves a gap in every bin, "
        "so the figure is too large for small sets; its interval is that of the resamples, moved onto the value. Dots below "
        "the diagonal are probabilities that are too high.",
        "\n".join(picture(f"{data}: reliability", plots[data], "reliability") for data in plots),
    )


def subgroups(card: ModelCard) -> str:
    """ROC-AUC, sensitivity and specificity by source, sex, age and site."""
    parts = ["## By source, sex, age and site"]
    for data, one in card.evaluations.items():
        sources = {
            name.removeprefix(f"{data}/"): card.metrics[name] | _reached(part)
            for name, part in card.evaluations.items()
            if name.startswith(f"{data}/")
        }
        tables = {"Source": sources} | {_KINDS.get(kind, kind): members for kind, members in one.subgroups.items()}
        if not any(tables.values()):
            continue
        parts.append(f"On `{data}`; sensitivity and specificity at `{_POINT}`, whose threshold is the same for all:")
        rows = [
            [kind, name, f"{figures['roc_auc'].images:,}", f"{figures['roc_auc'].positives:,}"]
            + [cell(figures.get(column)) for column in _COLUMNS]
            for kind, members in tables.items()
            for name, figures in members.items()
        ]
        parts.append(table(["", "", "images", "melanomas", *_COLUMNS.values()], rows))
    if len(parts) == 1:
        return ""
    parts.append("Skin type is not recorded in these sets, so nothing is known about it.")
    return join(*parts)


_COLUMNS: Final = {
    "roc_auc": "ROC-AUC",
    f"{_POINT}: sensitivity": "sensitivity",
    f"{_POINT}: specificity": "specificity",
    "calibration_error": "calibration error",
}


def _reached(one: Evaluation) -> dict[str, Estimate]:
    return {
        f"{name}: {side}": getattr(point, side)
        for name, point in one.operating_points.items()
        for side in ("sensitivity", "specificity")
    }


def leaves(card: ModelCard, plots: Links) -> str:
    """Recall and confusion over the nine leaves."""
    parts = ["## Diagnoses"]
    columns = {leaf: [column for column, leaves in COLUMN_LEAVES.items() if leaf in leaves] for leaf in LEAVES}
    for data, one in card.evaluations.items():
        if one.leaves is None or "/" in data:
            continue
        rows = [
            [f"`{leaf}`", LEAF_NAMES[leaf], ", ".join(columns[leaf]), f"{recall.positives:,}", cell(recall)]
            for leaf, recall in one.leaves.recall.items()
        ]
        parts.append(
            f"On `{data}`, the most probable of the nine leaves taken as the answer: balanced accuracy (mean recall of the "
            f"leaves) {cell(one.leaves.balanced_accuracy)}; chance would be {1 / len(LEAVES):.2f}. Referral does not use this "
            "answer but the probability of melanoma."
        )
        parts.append(table(["leaf", "", "reported as", "images", "recall"], rows))
        parts.append(picture(f"{data}: confusion", plots.get(data, {}), "confusion"))
    return join(*parts) if len(parts) > 1 else ""


def _sentences(lines: Iterable[str]) -> str:
    unique = list(dict.fromkeys(lines))
    return "Not measured:\n\n" + "\n".join(f"- {line}" for line in unique) if unique else ""


def _size(card: ModelCard, data: str) -> Estimate:
    return next(iter(card.metrics[data].values()))
