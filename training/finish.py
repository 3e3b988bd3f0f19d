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
from dermserve.model_card import SeenImages
from training import batches, card, ood, overlap
from training.adapt import add_to_bias, prior_shift, reestimate_batch_norm
from training.config import Config
from training.evaluate import fit_calibration, operating_points, softmax
from training.inference import predict
from training.loop import BEST, Images
from training.model import load_checkpoint, save_checkpoint
from training.pixels import ShowProgress, prepared, silent
from training.report import data as report_data
from training.report import subgroups
from training.report.examine import Examiner, Found
from training.report.limits import with_measured
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
        # The thresholds are for a served model that computes in float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        model, metadata = load_checkpoint(self.folder / BEST)
        model.to(self.device)
        adapted = reestimate_batch_norm(model, self.images, self.config, self.device, self.show)
        logits = self._logits(model, self.images.pixels, self.images.validation)
        targets = self.images.targets[self.images.validation]
        temperature, bias = fit_calibration(logits, targets, prior_shift(self.parts.train, self.images.weights))
        # softmax(z/T + b) = softmax((z + T·b)/T): the graph divides by T last.
        add_to_bias(model, temperature * bias)
        logits = logits + temperature * bias
        chances = softmax(logits, temperature)
        truth, scores = targets == MELANOMA, chances[:, MELANOMA]
        if truth.all() or not truth.any():
            raise StartupError("Thresholds need validation images with and without melanoma; use more images.")
        groups = [self.parts.groups[record.name] for record in self.parts.validation]
        points = operating_points(truth, scores, groups, "the validation images", bootstrap=self.config.bootstrap)
        thresholds = {name: point.threshold for name, point in points.items()}
        measured, alike = self._measured(model, temperature, chances, thresholds)
        account = self._account(adapted)
        removed = self.config.remove_artifacts
        found = {
            "preprocessing": preprocessing_hash(remove_artifacts=removed),
            "remove_artifacts": removed,
            "temperature": temperature,
        }
        novelty = ood.fit(
            model, self.images.pixels, self.images.train, self.device, remove_artifacts=removed, show=self.show
        )
        doubts = ood.account(
            model,
            novelty,
            self.images.pixels,
            self.images.validation,
            sources=[record.source for record in self.parts.validation],
            device=self.device,
            remove_artifacts=removed,
            show=self.show,
        )
        content = {
            "name": "melanoma",
            "version": __version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "architecture": self.config.architecture,
            "leaves": list(LEAVES),
            "input_size": SIDE,
            **found,
            "calibration_bias": {leaf: round(float(value), 4) for leaf, value in zip(LEAVES, bias, strict=True)},
            "operating_points": {name: point.model_dump() for name, point in points.items()},
            "metrics": {name: {k: v.model_dump() for k, v in one.metrics.items()} for name, one in measured.items()},
            "evaluations": {name: one.evaluation.model_dump() for name, one in measured.items()},
            "measured": f"PyTorch {torch.__version__} on {self.device.type}, before export",
            "seen": SeenImages.of(
                (record.name for record in self.parts.train), (record.name for record in self.parts.validation)
            ).model_dump(),
            **account,
            **doubts,
            "limits": with_measured([*account["limits"], *alike], measured),
        }
        save_checkpoint(self.folder / FINAL, model, metadata | found | {"ood": novelty.parameters})
        (self.folder / CARD).write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return self.folder / FINAL

    def _logits(self, model: nn.Module, pixels: Any, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return predict(model, pixels, rows, SIDE, self.device, show=self.show)

    def _measured(
        self, model: nn.Module, temperature: float, chances: NDArray[np.float64], thresholds: dict[str, float]
    ) -> tuple[dict[str, Found], list[str]]:
        """Figures of the validation images, each of their sources, and the test sets; and what limits the latter."""
        sets = [report_data.test_set(test) for test in self.tests]
        sets = [test for test in sets if 0 < test.truth.mean() < 1]  # an AUC needs both; no reason to lose the run
        validation = report_data.validation_set(self.parts.validation, self.parts.groups)
        paths = [path for labelled in (validation, *sets) for path in labelled.paths]
        examiner = Examiner(thresholds, subgroups.read_around(paths), self.config.bootstrap)
        found, limits = examiner.examine(validation.scored(chances)), []
        for test in sets:
            pixels = prepared(test.paths, self.cache, remove_artifacts=self.config.remove_artifacts, show=self.show)
            scored = test.scored(softmax(self._logits(model, pixels, np.arange(len(pixels))), temperature))
            found |= examiner.examine(scored)
            alike = overlap.find(pixels, self.images.pixels, self.images.train)
            if len(alike.labelled):
                limits.append(overlap.limit(test.name, len(pixels), alike))
        return found, limits

    def _account(self, adapted: int) -> dict[str, Any]:
        start = Path(self.config.initial_weights) if self.config.initial_weights else None
        origin = load_checkpoint(start)[1] if start and start.exists() else None
        account = card.training(
            self.config, self.parts, self.state, self.device.type, batch_norm_images=adapted, origin=origin
        )
        account["drawn_leaves"] = _by_leaf(batches.leaf_distribution(self.parts.train, self.images.weights))
        return {
            "training": account,
            "data": card.data(self.parts.train, self.parts.validation),
            "limits": card.limits(self.config, self.parts, self.state, self.device.type, origin),
        }


def _by_leaf(shares: NDArray[np.float64]) -> dict[str, float]:
    return {leaf: round(float(share), 4) for leaf, share in zip(LEAVES, shares, strict=True)}
