"""The training loop: stages of growing resolution, averaged weights, and a checkpoint from which it goes on exactly.

What happens in a step depends on the configuration, the step's number and the weights alone (`training.batches`
derives all randomness from them), so a checkpoint holds weights, optimiser and counters, and no random state. With
`max_minutes` the clock also decides the learning rate and the end of a stage, and only then is a run not repeatable.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dermserve.errors import StartupError
from dermserve.image import SIDE
from dermserve.labels import LEAVES
from training import batches
from training.augment import Chances, augmentation
from training.config import Config, Stage, validated
from training.evaluate import roc_auc, softmax
from training.inference import predict
from training.model import create_model, load_features, normalise, save_checkpoint, write_atomically
from training.objective import Objective
from training.pixels import Pixels, reduced
from training.schedule import Progress, Schedule

STATE = "last.pt"
BEST = "best.pt"
_NOT_FINITE_IN_A_ROW = 20


@dataclass
class Images:
    """Prepared pixels of all images, uint8 [N, 300, 300, 3], and which rows train and validate."""

    pixels: Pixels
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    content: str = ""
    """Stands for what `pixels` were made of; a run is not resumed with others."""


class Watcher(Protocol):
    """Is told what happens: a terminal's progress bar, wandb, or a test."""

    def samples(self, progress: Progress, images: Tensor) -> None:
        """Augmented images, uint8 [N, 3, side, side], at the start of a stage and after resuming."""

    def step(self, progress: Progress, fraction: float, loss: float, lr: float) -> None: ...

    def look(self, entry: dict[str, Any]) -> None: ...


class Trainer:
    """One run in one folder, new or resumed from its `last.pt`; `fit` returns when all stages are done."""

    def __init__(
        self,
        config: Config,
        images: Images,
        folder: Path,
        metadata: dict[str, Any],
        watcher: Watcher,
        *,
        device: torch.device,
        max_minutes: float | None = None,
        resume: bool = False,
    ) -> None:
        """Build or load weights and optimiser.

        Raises:
            StartupError: initial weights or a teacher cannot be had; or, to resume, there is no `last.pt`, or it belongs
                to another configuration or other images.
        """
        self.config, self.images, self.folder, self.metadata = config, images, folder, metadata
        self.watcher, self.device = watcher, device
        torch.manual_seed(batches.seed_for(config.seed, 0))
        self.model = create_model(
            architecture=config.architecture,
            pretrained=config.pretrained and not config.initial_weights and not resume,
            drop_rate=config.drop_rate,
            drop_path_rate=config.drop_path_rate,
            from_scratch_if_offline=config.from_scratch_if_offline,
        )
        if config.initial_weights and not resume:
            load_features(self.model, Path(config.initial_weights))
        self.model.to(device)
        # The same weights either way. Dynamic shapes would make a resumed stage another graph than an uninterrupted one.
        self._trained = torch.compile(self.model, dynamic=False) if config.compile else self.model
        torch.backends.cudnn.deterministic = True
        self.averaged = create_model(architecture=config.architecture).to(device).eval()
        self.averaged.load_state_dict(self.model.state_dict())
        self.objective = Objective(config, device)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, config.weight_decay), lr=config.lr, fused=True)
        self.schedule = Schedule(config, len(images.train), max_minutes)
        self.progress = Progress(seconds=[0.0] * len(config.stages))
        self._saved_at = time.monotonic()
        self._bad = 0
        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.BatchNorm2d)]
        self._statistics = [buffer for layer in layers for buffer in layer.buffers()]
        self._kept_statistics = [buffer.clone() for buffer in self._statistics]
        if resume:
            self._resume()

    def save(self) -> None:
        """Write `last.pt`, from which a run is resumed."""
        content = {
            "config": self.config.model_dump(),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": self._fingerprint(),
        }
        write_atomically(self.folder / STATE, content)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            raise StartupError(f"{self.folder} holds no {STATE} to resume from.")
        content = torch.load(path, map_location=self.device, weights_only=True)
        if validated(content["config"]) != self.config:
            raise StartupError(f"{path} was written with another configuration; resume with the same one.")
        if content["images"] != self._fingerprint():
            raise StartupError(
                f"{path} was written with other images, another preparation of them, another split or another teacher."
            )
        self.model.load_state_dict(content["model"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.progress = Progress(**content["progress"])

    def _fingerprint(self) -> str:
        arrays = (self.images.train, self.images.validation, self.images.targets, self.images.weights)
        parts = [part.tobytes() for part in arrays] + [self.images.content.encode()]
        if self.config.teacher:
            parts.append(Path(self.config.teacher).read_bytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def fit(self) -> None:
        """Train until every stage is done; `best.pt` and `last.pt` are then up to date."""
        self.save()  # a run that is killed before the first checkpoint can be resumed, too
        for index in range(self.progress.stage, len(self.config.stages)):
            self._fit_stage(index)
        self.save()

    def _fit_stage(self, index: int) -> None:
        stage, progress = self.config.stages[index], self.progress
        started, before = time.monotonic(), progress.seconds[index]
        pixels = self._working_pixels(stage, self.images.train)
        _freeze(self.model, stage.frozen_blocks)
        shown = False
        while self.schedule.stage_fraction(index, progress) < 1:
            for batch, targets in self._batches(stage, pixels):
                if not shown:
                    self.watcher.samples(progress, batch)
                    shown = True
                loss = self._step(batch, targets, stage)
                progress.batch += 1
                if math.isfinite(loss):  # a skipped step counts for the guard, not for the curve
                    progress.loss_sum, progress.loss_steps = progress.loss_sum + loss, progress.loss_steps + 1
                progress.seconds[index] = before + time.monotonic() - started
                self.watcher.step(
                    progress, self.schedule.fraction(progress), loss, self.optimizer.param_groups[0]["lr"]
                )
                if self.schedule.stage_fraction(index, progress) >= 1:
                    break
                if self._look_is_due(stage):
                    self._look(stage)
                if time.monotonic() - self._saved_at > self.config.checkpoint_minutes * 60:
                    self.save()
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
        self._look(stage)
        # Counters move on only now: a run killed during the last look repeats the look, not the stage.
        progress.stage, progress.epoch, progress.batch, progress.best = index + 1, 0, 0, -1.0
        if index + 1 < len(self.config.stages):
            self.save()

    def _step(self, images: Tensor, targets: Tensor, stage: Stage) -> float:
        progress, config = self.progress, self.config
        self.model.train()
        torch.manual_seed(batches.seed_for(config.seed, 3, progress.step))  # mixup, dropout, stochastic depth
        rate = self.schedule.learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        targets = targets.to(self.device, non_blocking=True)
        torch._foreach_copy_(self._kept_statistics, self._statistics)
        autocast = config.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            loss = self.objective(self._trained, normalise(images), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        progress.step += 1
        progress.images += len(targets)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            torch._foreach_copy_(self._statistics, self._kept_statistics)  # the forward pass has changed them already
            self._not_finite()
            return value
        self._bad = 0
        self.optimizer.step()
        self._average(config.ema_decay if stage.ema_decay is None else stage.ema_decay)
        return value

    def _not_finite(self) -> None:
        """A step with a NaN or infinite loss or gradient changes nothing in the network; too many in a row end the run."""
        self.progress.skipped += 1
        self._bad += 1
        if self._bad >= _NOT_FINITE_IN_A_ROW:
            raise StartupError(
                f"The loss or its gradient was not finite {self._bad} steps in a row (step {self.progress.step}); "
                f"start again with a lower lr in another folder; --set initial_weights={self.folder / BEST} keeps what was "
                "learnt, if a validation has been."
            )

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Exponential moving average of weights and BatchNorm statistics, with a short memory in the first steps."""
        decay = min(decay, (1 + self.progress.step) / (10 + self.progress.step))
        mine, theirs = self.averaged.state_dict(), self.model.state_dict()
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1 - decay)

    def _look_is_due(self, stage: Stage) -> bool:
        every = max(1, round(self.config.validate_every * self.schedule.epoch_steps(stage)))
        return self.schedule.steps_done(self.progress) % every == 0

    def _look(self, stage: Stage) -> None:
        """Score validation images with the averaged weights; keep them as `best.pt` when they are the stage's best."""
        rows = self.images.validation
        if self.config.validation_images:
            rows = np.random.default_rng(self.config.seed).permutation(rows)[: self.config.validation_images]
        logits = predict(self.averaged, self.images.pixels, rows, stage.resolution, self.device)
        scores = softmax(logits)
        targets = self.images.targets[rows]
        auc = roc_auc(targets == LEAVES.index("MEL"), scores[:, LEAVES.index("MEL")])
        picked = scores[np.arange(len(rows)), targets]
        progress = self.progress
        entry = {
            "stage": progress.stage,
            "resolution": stage.resolution,
            "epoch": round(progress.epoch + progress.batch / self.schedule.epoch_steps(stage), 3),
            "step": progress.step,
            "images": progress.images,
            "minutes": round(sum(progress.seconds) / 60, 2),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": progress.loss_sum / max(1, progress.loss_steps),
            "val_loss": float(-np.log(np.maximum(picked, 1e-12)).mean()),
            "val_auc": auc,
            "val_images": len(rows),
        }
        progress.loss_sum, progress.loss_steps = 0.0, 0
        progress.history.append(entry)
        self.watcher.look(entry)
        if not auc <= progress.best:  # also where the AUC is not defined (no melanoma among a few test images)
            progress.best = auc if math.isfinite(auc) else -1.0
            save_checkpoint(self.folder / BEST, self.averaged, self.metadata | {"validation": entry})

    def _working_pixels(self, stage: Stage, rows: NDArray[np.int64]) -> Pixels:
        """Small stages read small copies from memory; a quarter larger than needed, so that a crop has detail left."""
        side = math.ceil(stage.resolution * 1.25)
        return reduced(self.images.pixels, rows, side) if side <= 0.9 * SIDE else self.images.pixels

    def _batches(self, stage: Stage, pixels: Pixels) -> Iterator[tuple[Tensor, Tensor]]:
        config, progress, train = self.config, self.progress, self.images.train
        size = self.schedule.batch_size(stage)
        # Stages have their own epochs' draws: without it a stage would repeat the order of the one before.
        epoch = 1000 * progress.stage + progress.epoch
        sampler = batches.EpochSampler(self.images.weights, config.seed, epoch, progress.batch * size)
        rows = np.arange(len(train)) if len(pixels) == len(train) else train
        chances = Chances(config.artifacts, config.noise, config.cutout)
        transform = augmentation(config.augmentation, stage.resolution, chances)
        dataset = batches.TrainingImages(pixels, rows, self.images.targets[train], transform, config.seed)
        yield from DataLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            drop_last=True,
            num_workers=config.workers,
            pin_memory=self.device.type == "cuda",
        )


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and BatchNorm's scales are not decayed: shrinking them regularises nothing."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _freeze(model: nn.Module, blocks: int) -> None:
    """Take the gradient from the stem and the first `blocks` of an EfficientNet's seven; 0 gives it back to all."""
    frozen = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(blocks))) if blocks else ()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
