"""The words and tables of docs/model-card.md. Every figure in it is read from the card."""

from __future__ import annotations

from typing import Any

from dermserve.model_card import Measured, ModelCard
from training.report import results as report_results
from training.report.markdown import Links, join, plain, table


def page(card: ModelCard, plots: Links, learning_curve: str | None) -> str:
    """The whole page as Markdown."""
    sections = [
        _head(card),
        _use(),
        report_results.results(card, plots),
        report_results.points(card),
        report_results.calibration(card, plots),
        report_results.subgroups(card),
        report_results.leaves(card, plots),
        _training(card, learning_curve),
        _data(card),
        _gate(card),
        _limits(card),
        _reproduce(card),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(card: ModelCard) -> str:
    return f"""# Model card: {card.name} {card.version}

> Research use only; not a medical device. A probability is no diagnosis.

This page and the figures in `model_repository/classifier/1/model_card.json` are written together by
`dermserve evaluate --write-card`; edit neither. Figures stand with their 95 % intervals, from resampling lesions or
patients with all their images; for shares (sensitivity, specificity, recall) the wider of these and Wilson's for as many
groups. Measured: {card.measured or "not recorded"}.

| | |
|---|---|
| Task | probability of melanoma, and of nine diagnoses, for one dermoscopy photograph of one lesion |
| Network | {card.architecture}, {card.input_size} × {card.input_size} pixels, one network, no ensemble |
| Answers | Benign, Suspicious, Malignant (together 1) and Melanoma (part of Malignant); class activation map |
| Weights | SHA-256 `{card.weights_sha256[:16]}…`, made {card.created_at} |
| Image preparation | SHA-256 `{card.preprocessing[:16]}…`; the server refuses weights made with another one |
| Licence | code Apache-2.0; weights for non-commercial use, as the training images (see *Data*) |"""


def _use() -> str:
    return """## Use

**Meant for** research, teaching, engineering and retrospective studies: scoring dermoscopy photographs, comparing
methods, measuring a service under load, on images whose use is permitted.

**Not meant for** diagnosis, triage or treatment of a person; for photographs without a dermatoscope, histology, nails or
mucosa; for ruling melanoma out: at every operating point some melanomas are not referred."""


def _training(card: ModelCard, learning_curve: str | None) -> str:
    about = card.training
    config = about.get("config", {})
    stages = config.get("stages", [])
    schedule = ", ".join(
        f"{stage['resolution']} px (at most {stage['epochs']:g} epochs"
        + (f", first {stage['frozen_blocks']} blocks fixed)" if stage.get("frozen_blocks") else ")")
        for stage in stages
    )
    drawn = config.get("artifacts", 0.0) if config.get("augmentation") == "full" else 0.0
    images, renewed = about.get("images", {}), about.get("batch_norm_images", 0)
    rows: list[list[Any]] = [
        ["start", about.get("start")],
        ["preset", f"`{about.get('preset')}`"],
        ["schedule", schedule],
        [
            "images",
            f"{images.get('train', 0):,} to train, {images.get('val', 0):,} to validate; split: {about.get('split')}",
        ],
        [
            "length",
            f"{about.get('minutes')} minutes on {about.get('device')}, {about.get('epochs')} passes, "
            f"{about.get('image_passes', 0):,} images drawn",
        ],
        [
            "optimiser",
            f"peak learning rate {config.get('lr')}, batches of {config.get('batch_size')}, weight decay "
            f"{config.get('weight_decay')}, averaged weights (decay {config.get('ema_decay')})",
        ],
        [
            "sampling",
            f"balanced: melanoma drawn at {config.get('melanoma_share', 0):.0%} in each source, the last bias corrected "
            "afterwards"
            if config.get("sampling") == "balanced"
            else "natural",
        ],
        [
            "augmentation",
            f"{config.get('augmentation')}; artefacts drawn on {drawn:.0%} of the images",
        ],
        [
            "afterwards",
            (f"BatchNorm statistics from {renewed:,} images at {card.input_size} px; " if renewed else "")
            + "calibration and thresholds from the validation images",
        ],
    ]
    picture = f"![Learning curve]({learning_curve})" if learning_curve else ""
    return join("## Training", table(["", ""], [[str(cell) for cell in row] for row in rows]), picture)


def _data(card: ModelCard) -> str:
    rows = [
        [
            str(one.get("name")),
            f"{one.get('train', 0):,}",
            f"{one.get('val', 0):,}",
            f"{one.get('melanoma', 0):,}",
            " × ".join(map(str, one.get("median_size", []))),
            str(one.get("licence")),
            str(one.get("attribution")),
        ]
        for one in card.data
    ]
    head = ["source", "train", "validation", "melanomas", "median pixels", "licence", "please cite"]
    seen = (
        "The card keeps a digest of every image id used in training: `dermserve evaluate` refuses to measure on them."
        if card.seen is not None
        else "These weights kept no list of their training images, so `dermserve evaluate` cannot refuse them."
    )
    return join("## Data", table(head, rows), "Groups (patient, lesion, duplicates) never cross the split. " + seen)


def _gate(card: ModelCard) -> str:
    return join(
        "## Artefacts, and images it should not judge",
        _flags(card.quality),
        _abstentions(card.ood),
        "Both are explained in [abstention.md](abstention.md).",
    )


def _flags(quality: Measured) -> str:
    if not quality.measured:
        return "`quality` (flags of image quality): not measured."
    shares: dict[str, dict[str, float]] = getattr(quality, "flagged", {})
    sets = list(next(iter(shares.values()), {}))
    rows = [
        [f"`{flag}`", f"{threshold:g}", *(f"{shares[flag][name]:.1%}" for name in sets if flag in shares)]
        for flag, threshold in quality.thresholds.items()
    ]
    flagged = ", and on which share of the validation images" if sets else ""
    return join(
        f"`quality` (flags of image quality): where each is raised{flagged}.",
        table(["flag", "raised at", *(f"`{name}`" for name in sets)], rows),
    )


def _abstentions(ood: Measured) -> str:
    if not ood.measured:
        return "`ood` (distance to the training images, from which the server abstains): not measured."
    abstained: dict[str, float] = getattr(ood, "abstained", {})
    generated: dict[str, float] = getattr(ood, "generated", {})
    rows = [[f"`{name}`", f"{share:.1%}"] for name, share in abstained.items()]
    missed = [f"{kind} {share:.0%}" for kind, share in generated.items() if kind != "all" and share < 1]
    if generated:
        but = f" ({', '.join(missed)}; the other kinds all)" if missed else ""
        rows.append([f"generated images without a lesion{but}", f"{generated['all']:.1%}"])
    drawn = getattr(ood, "drawn_lesions", None)
    if drawn is not None:
        rows.append(["drawn lesions, which it should judge", f"{drawn:.1%}"])
    return join(
        f"`ood` (distance to the training images), threshold {plain(ood.thresholds['ood'])}. {ood.note}",
        table(["images", "abstained on"], rows) if rows else "",
    )


def _limits(card: ModelCard) -> str:
    return join("## Limits", "\n".join(f"- {limit}" for limit in card.limits))


def _reproduce(card: ModelCard) -> str:
    tests = [data for data in card.metrics if "/" not in data and data != "val"]
    test = tests[0] if tests else "isic2017-test"
    return f"""## Reproduce

All of this page, its plots and the card's figures, from the running server and a folder with the data sets:

```sh
make serve                                                     # in one shell
.venv/bin/dermserve evaluate --write-card ../shared/data       # in another; the same intervals every time
```

One data set by hand; it prints the same figures:

```sh
.venv/bin/dermserve predict ../shared/data/{test}/images --csv out.csv
.venv/bin/dermserve evaluate out.csv ../shared/data/{test}/labels.csv --plots plots/
```

And the validation images, from what the first command scored:

```sh
.venv/bin/dermserve evaluate --write-card ../shared/data --keep scores/
.venv/bin/dermserve evaluate scores/val.csv ../shared/data
```"""
