"""Knowing when not to answer: fit the distance to the training images, and measure how often it abstains.

Fitted on training images alone, of which some get drawn artefacts, so that a ruler or a hair does not make an image
strange. The generated images of `dermserve.nonlesion` enter no fit, but were looked at while the statistics were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn

from dermserve import artifacts, nonlesion, quality, sample
from dermserve.image import fit as fitted
from dermserve.labels import QUALITY_FLAGS
from training.artifacts import KINDS, draw
from training.inference import to_input
from training.model import DETAILS, Novelty, statistics
from training.pixels import Pixels, ShowProgress, silent

Matrix = NDArray[np.float64]

_STATISTICS: Final = 4000
"""Training images whose statistics are looked at; milliseconds each."""
_EMBEDDINGS: Final = 2000
"""Training images that pass the network, and on which the threshold is chosen."""
_DRAWN: Final = 1200
"""Training images that are looked at once more with a drawn artefact."""
_CLUSTERS: Final = 6
_COMPONENTS: Final = 64
_USUAL: Final = 99.5
"""Percentile of the training images where abstention begins."""
_USUAL_DRAWN: Final = 97.0
"""The same for drawn artefacts, which may be more extreme than real ones."""
_BATCH: Final = 16
_CPU: Final = torch.device("cpu")
_PER_KIND: Final = 12
"""Generated images of each kind behind the card's figures."""


@dataclass(frozen=True)
class Fitted:
    """`parameters` are those of `model.Novelty`; images are abstained on whose distance exceeds `threshold`."""

    parameters: dict[str, Tensor]
    threshold: float


def fit(
    model: nn.Module,
    pixels: Pixels,
    rows: NDArray[np.int64],
    device: torch.device,
    *,
    remove_artifacts: bool = False,
    seed: int = 0,
    show: ShowProgress = silent,
) -> Fitted:
    """Fit to the training images `rows` of prepared `pixels` (uint8 [N, 300, 300, 3]).

    Args:
        model: the trained network; its embedding is looked at as it is now.
        pixels: prepared images, hair already removed where the network is used so.
        rows: which of them are training images.
        device: where the network is.
        remove_artifacts: also remove what is drawn, as a server with these weights would.
        seed: picks the images and draws the artefacts.
        show: progress bar.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    # Sorted, because a disk reads a memory map in order far quicker than at random.
    seen, counted, marked = (np.sort(rows[:most]) for most in (_EMBEDDINGS, _STATISTICS, _DRAWN))
    drawn = _drawn_statistics(pixels, marked, rng, remove_artifacts, show)
    parameters = _fit_statistics(_statistics(pixels, counted, show), drawn)
    embedded = embeddings(model, pixels, seen, device, show=show)
    parameters |= _fit_embedding(embedded)
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in parameters.items()}
    novelty, parts = Novelty(tensors), torch.from_numpy(embedded).split(_BATCH)
    with torch.inference_mode():
        batches = zip(_batches(pixels, seen, show), parts, strict=True)
        found = torch.cat([novelty(_floats(some, _CPU), part) for some, part in batches])
    return Fitted(tensors, float(np.percentile(found.numpy(), _USUAL)))


@torch.inference_mode()
def embeddings(
    model: nn.Module, pixels: Pixels, rows: NDArray[np.int64], device: torch.device, *, show: ShowProgress = silent
) -> NDArray[np.float32]:
    """Pooled features of `rows` of prepared images: float32 [len(rows), D]."""
    model.eval()
    return np.concatenate([_embed(model, some, device).cpu().numpy() for some in _batches(pixels, rows, show)])


@torch.inference_mode()
def distances(
    model: nn.Module,
    parameters: dict[str, Tensor],
    pixels: Pixels,
    rows: NDArray[np.int64],
    device: torch.device,
    *,
    show: ShowProgress = silent,
) -> NDArray[np.float32]:
    """The output `ood` of `rows` of prepared images: float32 [len(rows)]."""
    model.eval()
    novelty = Novelty(parameters).to(device)
    found = [novelty(_floats(some, device), _embed(model, some, device)) for some in _batches(pixels, rows, show)]
    return torch.cat(found)[:, 0].cpu().numpy()


def account(
    model: nn.Module,
    found: Fitted,
    pixels: Pixels,
    validation: NDArray[np.int64],
    *,
    sources: list[str],
    device: torch.device,
    remove_artifacts: bool = False,
    show: ShowProgress = silent,
) -> dict[str, Any]:
    """The card's `ood` and `quality`: thresholds, and on which share of which images they act.

    `sources` names the data set of each of the `validation` rows. Flags are not counted where hair was removed from
    `pixels`, because they speak of the photograph before that.
    """
    ood = distances(model, found.parameters, pixels, validation, device, show=show) > found.threshold
    kinds = [kind for kind in nonlesion.KINDS for _ in range(_PER_KIND)]
    drawn = [nonlesion.draw(kind, seed) for seed, kind in enumerate(kinds)]
    drawn += [sample.draw(seed) for seed in range(_PER_KIND)]
    ready = [fitted(one).pixels for one in drawn]
    if remove_artifacts:
        ready = [artifacts.remove(one) for one in ready]
    caught = distances(model, found.parameters, np.stack(ready), np.arange(len(ready)), device) > found.threshold
    card: dict[str, Any] = {
        "ood": {
            "measured": True,
            "thresholds": {"ood": found.threshold},
            "note": f"Abstains where an image lies further from the training images than {_USUAL} % of them; measured "
            f"on {len(validation)} validation images, and on {len(kinds)} drawn ones that are no dermoscopy.",
            "abstained": _by_source(ood, sources),
            "generated": {"all": round(float(caught[: len(kinds)].mean()), 4)}
            | {kind: round(float(caught[: len(kinds)][np.array(kinds) == kind].mean()), 4) for kind in nonlesion.KINDS},
            "drawn_lesions": round(float(caught[len(kinds) :].mean()), 4),
        },
        "quality": {"measured": True, "thresholds": dict(quality.THRESHOLDS)},
    }
    if not remove_artifacts:
        some = show(validation, "Looking for blur, hair, ink and tint", len(validation))
        flags = np.stack([quality.measure(pixels[row]) for row in some]) >= list(quality.THRESHOLDS.values())
        card["quality"]["flagged"] = {
            name: _by_source(flags[:, column], sources) for column, name in enumerate(QUALITY_FLAGS)
        }
        card["quality"]["note"] = f"Share of images flagged, measured on {len(validation)} validation images."
    return card


def _statistics(pixels: Pixels, rows: NDArray[np.int64], show: ShowProgress) -> Matrix:
    return np.concatenate([_measured(some) for some in _batches(pixels, rows, show, "Statistics")])


def _drawn_statistics(
    pixels: Pixels, rows: NDArray[np.int64], rng: np.random.Generator, remove_artifacts: bool, show: ShowProgress
) -> Matrix:
    """The same of images with a drawn artefact, which is removed again where a server would do so."""
    found: list[Matrix] = []
    for some in _batches(pixels, rows, show, "Statistics with artefacts"):
        laid = [draw(str(rng.choice(list(KINDS))), one, rng) for one in some]
        found.append(_measured(np.stack([artifacts.remove(one) for one in laid] if remove_artifacts else laid)))
    return np.concatenate(found)


def _fit_statistics(real: Matrix, drawn: Matrix) -> dict[str, Matrix]:
    """Clusters of the images as they are, and one more of those with drawn artefacts; each scaled by its own edge."""
    usual, detail = real[:, :-DETAILS], real[:, -DETAILS:]
    mean, std = usual.mean(axis=0), usual.std(axis=0) + 1e-3
    usual, strange = (usual - mean) / std, (drawn[:, :-DETAILS] - mean) / std
    clusters = max(1, min(_CLUSTERS, len(usual) // 400))
    whole = np.cov(usual.T) + 1e-2 * np.eye(usual.shape[1])
    # Clusters of round shape once the statistics are made independent of each other.
    assigned = KMeans(clusters, n_init=2, random_state=0).fit(usual @ _whitening(whole)).labels_
    groups = [_gaussian(usual[assigned == cluster], whole) for cluster in range(clusters)]
    edge = np.percentile(_nearest(usual, groups), _USUAL)
    marked_group = _gaussian(strange, whole)
    marked_edge = np.percentile(_nearest(strange, [marked_group]), _USUAL_DRAWN)
    groups = [(centre, matrix / edge) for centre, matrix in groups] + [(marked_group[0], marked_group[1] / marked_edge)]
    blurred = detail.mean(axis=0) - np.percentile(detail, 0.2, axis=0)
    return {
        "mean": mean,
        "std": std,
        "centres": np.stack([centre for centre, _ in groups]),
        "whitening": np.stack([matrix for _, matrix in groups]),
        "detail_mean": detail.mean(axis=0),
        "detail_scale": 1 / (blurred + 1e-3),
    }


def _fit_embedding(found: NDArray[np.float32]) -> dict[str, Matrix]:
    """Principal components that carry 99.9 % of the variance, at most 64; both distances reach 1 at 0.2 % of images.

    Every second image gives the components and the others say how far images lie, because those that a component was
    fitted to lie nearer to it.
    """
    fitting, judging = found[::2].astype(np.float64), found[1::2]
    mean = fitting.mean(axis=0)
    _, singular, basis = np.linalg.svd(fitting - mean, full_matrices=False)
    variance = singular**2 / len(fitting)
    carried = np.cumsum(variance) / variance.sum()
    count = int(min(_COMPONENTS, 1 + np.searchsorted(carried, 0.999), len(fitting) // 4 + 1))
    centred = judging - mean
    inside = centred @ basis[:count].T
    scale = 1 / np.sqrt(variance[:count])
    along = np.sqrt(np.square(inside * scale).mean(axis=1))
    residual = np.linalg.norm(centred - inside @ basis[:count], axis=1)
    return {
        "embedding_mean": mean,
        "embedding_basis": basis[:count].T,
        "embedding_scale": scale / np.percentile(along, 99.8),
        "embedding_residual": np.array(1 / np.percentile(residual, 99.8)),
    }


def _gaussian(points: Matrix, whole: Matrix) -> tuple[Matrix, Matrix]:
    """Centre and whitening matrix; a little of the whole set's covariance steadies that of a small cluster."""
    own = np.cov(points.T) if len(points) > 1 else whole
    share = 0.05 + 0.95 / (1 + len(points) / 20)
    return points.mean(axis=0), _whitening((1 - share) * own + share * whole)


def _whitening(covariance: Matrix) -> Matrix:
    """W with W·Wᵀ = covariance⁻¹, so that ‖(x − μ)·W‖ is the Mahalanobis distance."""
    return np.linalg.cholesky(np.linalg.inv(covariance))


def _nearest(points: Matrix, groups: list[tuple[Matrix, Matrix]]) -> Matrix:
    away: Matrix = np.min([np.linalg.norm((points - centre) @ matrix, axis=1) for centre, matrix in groups], axis=0)
    return away


def _measured(some: Pixels) -> Matrix:
    with torch.inference_mode():
        return statistics(_floats(some, _CPU)).double().numpy()


def _floats(some: Pixels, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(some)).to(device).permute(0, 3, 1, 2).float()


def _embed(model: nn.Module, some: Pixels, device: torch.device) -> Tensor:
    features: Tensor = model.forward_features(to_input(some, device))  # type: ignore[operator]
    return features.mean(dim=(2, 3)).float()


def _batches(pixels: Pixels, rows: NDArray[np.int64], show: ShowProgress, label: str = "Distances") -> Any:
    starts = range(0, len(rows), _BATCH)
    return (np.array(pixels[rows[start : start + _BATCH]]) for start in show(starts, label, len(starts)))


def _by_source(raised: NDArray[np.bool_], sources: list[str]) -> dict[str, float]:
    """Shares of all images and of each source's."""
    names = np.array(sources)
    shares = {"val": round(float(raised.mean()), 4)}
    return shares | {f"val/{name}": round(float(raised[names == name].mean()), 4) for name in sorted(set(sources))}
