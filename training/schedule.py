"""How far a run has come, and the learning rate that belongs there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from training.config import Config, Stage


@dataclass
class Progress:
    """Where a run stands: everything but the tensors. `seconds` is the time spent in each stage so far.

    `epoch` and `batch` count within the stage (`batch` within the epoch), `step` and `images` over the run; `skipped`
    counts steps without a finite gradient, `best` is the stage's best validation ROC-AUC, −1 before the first;
    `loss_sum` and `loss_steps` are those since the last look.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    seconds: list[float] = field(default_factory=list)
    images: int = 0
    best: float = -1.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """The stages over `images` training images, within `max_minutes` where that is not None."""

    config: Config
    images: int
    max_minutes: float | None = None

    def batch_size(self, stage: Stage) -> int:
        """Images a step; never more than there are."""
        return min(stage.batch_size or self.config.batch_size, self.images)

    def epoch_steps(self, stage: Stage) -> int:
        """Steps of one pass. A last, smaller batch is left out: it would disturb BatchNorm's statistics."""
        return max(1, self.images // self.batch_size(stage))

    def stage_steps(self, stage: Stage) -> int:
        """Steps of a whole stage, at least one."""
        return max(1, round(stage.epochs * self.epoch_steps(stage)))

    def steps_done(self, progress: Progress) -> int:
        """Steps of the current stage so far."""
        return progress.epoch * self.epoch_steps(self.config.stages[progress.stage]) + progress.batch

    def stage_fraction(self, index: int, progress: Progress) -> float:
        """How far stage `index` has come, 0…1: by its steps or by its share of the time, whichever is further."""
        stages = self.config.stages
        if index != progress.stage:
            return float(index < progress.stage)
        done = self.steps_done(progress) / self.stage_steps(stages[index])
        if self.max_minutes is not None:
            budget = self.max_minutes * 60 * stages[index].share / sum(stage.share for stage in stages)
            done = max(done, progress.seconds[index] / budget)
        return min(1.0, done)

    def fraction(self, progress: Progress) -> float:
        """How far the run has come, 0…1. Stages weigh by their share of the time, or without a limit by their steps."""
        stages = self.config.stages
        timed = self.max_minutes is not None
        weights = [stage.share if timed else self.stage_steps(stage) for stage in stages]
        done = [self.stage_fraction(index, progress) for index in range(len(stages))]
        return sum(weight * part for weight, part in zip(weights, done, strict=True)) / sum(weights)

    def learning_rate(self, progress: Progress) -> float:
        """Linear warm-up, then a cosine down to `lr_final` (Loshchilov and Hutter 2017), times the stage's factor."""
        config, done = self.config, self.fraction(progress)
        peak = config.lr * config.stages[min(progress.stage, len(config.stages) - 1)].lr_scale
        if done < config.warmup:
            return peak * max(done / config.warmup, 0.01)
        phase = (done - config.warmup) / (1 - config.warmup)
        return peak * (config.lr_final + (1 - config.lr_final) * (1 + math.cos(math.pi * phase)) / 2)
