"""From trained weights to a finished run: adapt to 300 px, calibrate, measure, write `final.pt` and `card.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dermserve import __version__
from dermserve.errors import StartupError
from dermserve.image import SIDE, preprocessing_hash
from dermserve.labels import LEAVES
from dermserve.model_card import Estimate
from training import batches, card
from training.adapt import add_to_bias, prior_shift, reestimate_batch_norm
from training.config import Config
from training.evaluate import fit_temperature, measure, operating_points, softmax
from training.inference import predict
from training.loop import BEST, Images
from training.model import load_checkpoint, save_checkpoint
from training.pixels import ShowProgress, prepared, silent
from training.schedule import Progress
from training.splits import Split
from training.truth import TestSet

FINAL, CARD = "final.pt", "card.json"
MELANOMA = LEAVES.index("MEL")


@dataclass(frozen=True)
class Finisher:
    """What finishing needs to know of a trained run. `cache` is the folder of prepared pixels."""

    folder: Path
    cache: Path
    config: Config
    parts: Split
    images: Images
    state: Progress
    tests: Sequence[TestSet]
    device: torch.device
    show: ShowProgress = silent

    def finish(self) -> Path:
        """Write `final.pt` and `card.json` from `best.pt`, the last stage's best; returns the checkpoint's path.

        Temperature and operating points come from the validation images alone. The test sets are scored last; nothing
        depends on them.

        Raises:
            StartupError: the validation images are all melanomas, or none is.
        """
        model, metadata = load_checkpoint(self.folder / BEST)
        model.to(self.device)
        adapted = reestimate_batch_norm(model, self.images, self.config, self.device, self.show)
        logits = self._logits(model, self.images.pixels, self.images.validation)
        targets = self.images.targets[self.images.validation]
        shift = prior_shift(self.parts.train, self.images.weights)
        temperature = fit_temperature(logits, targets, shift)
        # softmax(z/T + shift) = softmax((z + T·shift)/T): the graph divides by T last.
        add_to_bias(model, temperature * shift)
        logits = logits + temperature * shift
        truth, scores = targets == MELANOMA, softmax(logits, temperature)[:, MELANOMA]
        if truth.all() or not truth.any():
            raise StartupError("Thresholds need validation images with and without melanoma; use more images.")
        groups = [self.parts.groups[record.name] for record in self.parts.validation]
        points = operating_points(truth, scores, groups, "the validation images", bootstrap=self.config.bootstrap)
        metrics = self._validation_metrics(truth, scores, groups)
        for test in self.tests:
            if (
                len(set(test.labels.melanoma.values())) == 2
            ):  # an AUC needs both; such a set is no reason to lose the run
                metrics[test.name] = self._test_metrics(model, temperature, test)
        found = {"preprocessing": preprocessing_hash(), "temperature": temperature}
        content = {
            "name": "melanoma",
            "version": __version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "architecture": self.config.architecture,
            "leaves": list(LEAVES),
            "input_size": SIDE,
            **found,
            "operating_points": {name: point.model_dump() for name, point in points.items()},
            "metrics": {data: {k: v.model_dump() for k, v in some.items()} for data, some in metrics.items()},
            **self._account(adapted),
        }
        save_checkpoint(self.folder / FINAL, model, metadata | found)
        (self.folder / CARD).write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return self.folder / FINAL

    def _logits(self, model: nn.Module, pixels: Any, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return predict(model, pixels, rows, SIDE, self.device, show=self.show)

    def _validation_metrics(
        self, truth: NDArray[np.bool_], scores: NDArray[np.float64], groups: list[str]
    ) -> dict[str, dict[str, Estimate]]:
        """Figures of all validation images, and of each source that has images with and without melanoma."""
        found = {"val": measure(truth, scores, groups, bootstrap=self.config.bootstrap)}
        sources = np.array([record.source for record in self.parts.validation])
        for source in sorted(set(sources)):
            rows = np.flatnonzero(sources == source)
            if truth[rows].any() and not truth[rows].all():
                some = [groups[row] for row in rows]
                found[f"val/{source}"] = measure(truth[rows], scores[rows], some, bootstrap=self.config.bootstrap)
        return found

    def _test_metrics(self, model: nn.Module, temperature: float, test: TestSet) -> dict[str, Estimate]:
        pixels = prepared(test.paths, self.cache, show=self.show)
        logits = self._logits(model, pixels, np.arange(len(pixels)))
        names = list(test.labels.melanoma)
        truth = np.array([test.labels.melanoma[name] for name in names])
        groups = [test.labels.groups[name] for name in names]
        return measure(truth, softmax(logits, temperature)[:, MELANOMA], groups, bootstrap=self.config.bootstrap)

    def _account(self, adapted: int) -> dict[str, Any]:
        account = card.training(self.config, self.parts, self.state, self.device.type, adapted)
        account["drawn_leaves"] = _by_leaf(batches.leaf_distribution(self.parts.train, self.images.weights))
        return {
            "training": account,
            "data": card.data(self.parts.train, self.parts.validation),
            "limits": card.limits(self.config, self.parts, self.state, self.device.type),
        }


def _by_leaf(shares: NDArray[np.float64]) -> dict[str, float]:
    return {leaf: round(float(share), 4) for leaf, share in zip(LEAVES, shares, strict=True)}
