"""What a training step minimises: cross-entropy with smoothed labels, mixed images, a teacher's logits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training.config import Config
from training.model import load_checkpoint


class Objective:
    """The loss of one batch. What it draws, it draws from torch's global generators."""

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load the teacher, if the configuration names one.

        Raises:
            StartupError: the checkpoint is of no use as a teacher.
        """
        self.config = config
        self._mixup = v2.MixUp(alpha=config.mixup, num_classes=len(LEAVES)) if config.mixup else None
        self._teacher = load_teacher(Path(config.teacher)).to(device) if config.teacher else None

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of normalised float32 [N, 3, H, W] and leaves int64 [N].

        Mixup (Zhang et al. 2018) weighs each image and its label with those of another one. The teacher sees the very
        same pixels as the student (Beyer et al. 2022, "A good teacher is patient and consistent").
        """
        if self._mixup is not None:
            images, targets = self._mixup(images, targets)
        logits = model(images)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            goal = self._teacher(images)
        weight = self.config.distill
        return (1 - weight) * loss + weight * divergence(logits, goal, self.config.distill_temperature)


def divergence(logits: Tensor, goal: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened predictions from a teacher's, [N, 9] each; a scalar.

    Times temperature², so that its gradient stays as large as the cross-entropy's (Hinton, Vinyals and Dean 2015).
    """
    ours = functional.log_softmax(logits.float() / temperature, dim=1)
    theirs = functional.log_softmax(goal.float() / temperature, dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def load_teacher(path: Path, preprocessing: str | None = None) -> nn.Module:
    """A run's `best.pt`, on the CPU, without gradients.

    Args:
        path: the checkpoint.
        preprocessing: hash of the image preparation that the student sees; None: not compared.

    Raises:
        StartupError: the checkpoint is of no use as a teacher.
    """
    model, metadata = load_checkpoint(path)
    if "temperature" in metadata:
        # Finishing moved the last bias from the drawn prior to the natural one; the student's would be moved twice.
        raise StartupError(f"{path} is a finished model; a teacher is the best.pt beside it.")
    if "inherited" in metadata:
        raise StartupError(
            f"{path} holds features only, and its last layer knows nothing; a teacher is a run's best.pt."
        )
    if preprocessing is not None and metadata["preprocessing"] != preprocessing:
        raise StartupError(f"{path} was trained on images prepared in another way; its answers to these mean little.")
    return model.requires_grad_(requires_grad=False)
