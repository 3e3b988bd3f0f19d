"""Limits that follow from the figures, as sentences for people; written anew whenever the figures are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dermserve.model_card import Estimate
from training.report.examine import Found
from training.report.subgroups import UNKNOWN

MARK: Final = "Measured: "
_POINT: Final = "sensitivity_95"
_POOR_RECALL: Final = 0.5


def with_measured(limits: Iterable[str], found: Mapping[str, Found]) -> list[str]:
    """The limits, those from earlier figures replaced by those from `found`, which begin with the validation images."""
    kept = [limit for limit in limits if not limit.startswith(MARK)]
    return kept + [MARK + sentence for sentence in _sentences(found)]


def _sentences(found: Mapping[str, Found]) -> list[str]:
    names = [name for name in found if "/" not in name]
    validation = names[0]
    sentences = []
    for name in names[1:]:
        here, there = found[name].metrics["roc_auc"], found[validation].metrics["roc_auc"]
        sentences.append(f"ROC-AUC {_shown(here)} on {name}, against {_shown(there)} on the validation images.")
    for name in names:
        point = found[name].points.get(_POINT)
        if point is not None:
            sentences.append(
                f"on {'the validation images' if name == validation else name}, {_POINT} refers "
                f"{1 - point.specificity.value:.0%} of the lesions that are no melanomas and misses "
                f"{1 - point.sensitivity.value:.0%} of the melanomas."
            )
    evaluation = found[validation].evaluation
    groups = {"source": {name.split("/", 1)[1]: one.metrics for name, one in found.items() if "/" in name}}
    for kind, members in (groups | evaluation.subgroups).items():
        known = [(name, figures["roc_auc"]) for name, figures in members.items() if name != UNKNOWN]
        if len(known) > 1:
            worst, best = sorted(known, key=lambda item: item[1].value)[:: len(known) - 1]
            sentences.append(
                f"by {kind}, ROC-AUC goes from {_shown(worst[1])} ({worst[0]}) to "
                f"{_shown(best[1])} ({best[0]}) on the validation images."
            )
    if evaluation.leaves is not None:
        poor = [
            f"{leaf} {recall.value:.0%}"
            for leaf, recall in evaluation.leaves.recall.items()
            if recall.value < _POOR_RECALL
        ]
        if poor:
            sentences.append(
                f"these leaves are the most probable one for fewer than half of their images: {', '.join(poor)}."
            )
    return sentences


def _shown(figure: Estimate) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"
