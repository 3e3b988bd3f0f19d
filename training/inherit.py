"""From the transplanted EfficientNet-Lite2 to an EfficientNet-B3 with Swish that computes much the same features.

The transplant is exact only with the teacher's ReLU6. Three phases of distillation on unlabelled training images make
up for it, each starting where the one before left off: stem and first block by regression, then every block alone with
the teacher's features as its input (block-wise distillation, Li et al., CVPR 2020), then all of it from pixels with the
teacher's features after each stage as hints (FitNets, Romero et al., ICLR 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import batches
from training.inference import to_input
from training.model import create_model
from training.pixels import Pixels, ShowProgress, reduced, silent
from training.transplant import Channels, teacher_input, transplant

_HELD_BACK = 96


@dataclass(frozen=True)
class Plan:
    """How long and how large: `steps` end to end, as many for stem and first block, 0.4 as many block by block."""

    steps: int = 250
    side: int = 128
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Summary:
    """How near B3's features are to the teacher's on images that were not trained on.

    `errors` are squared differences relative to the variance of the teacher's channels, 0 being equal and about 1 what
    a constant would reach: after the stem, the seven stages, the head and pooling. `correlation` is Pearson's, over all
    pooled features.
    """

    errors: dict[str, float]
    correlation: float
    images: int


def distilled(
    teacher: nn.Module,
    pixels: Pixels,
    train: NDArray[np.int64],
    held_back: NDArray[np.int64],
    plan: Plan,
    *,
    device: torch.device,
    show: ShowProgress = silent,
) -> tuple[nn.Module, Summary]:
    """A B3 with the teacher's features and a random last layer, in evaluation mode on `device`.

    Args:
        teacher: of `transplant.load_teacher`.
        pixels: prepared images, uint8 [N, 300, 300, 3].
        train: rows to distil on; no label is used.
        held_back: rows of which some are compared at the end.
        plan: length and size.
        device: where to compute.
        show: shows progress.
    """
    torch.manual_seed(plan.seed)
    student: Any = create_model()
    channels = transplant(teacher, student, seed=plan.seed)
    pair = Pair(teacher.to(device), student.to(device), channels)

    def draw(phase: int, size: int, side: int) -> Callable[[int], Tensor]:
        def images(step: int) -> Tensor:
            rng = np.random.default_rng(batches.seed_for(plan.seed, 6, phase, step))
            return to_input(_flipped(pixels, train, rng, size, side), device)

        return images

    first = [student.conv_stem, student.bn1, student.blocks[0]]
    later = [*list(student.blocks)[1:], student.conv_head, student.bn2]
    # The first phase is cheap, so it can be long; it must be, for a stem with another activation starts far off.
    small = draw(0, max(2, plan.batch_size // 2), max(32, plan.side * 3 // 4))
    bar = show(range(plan.steps), "Stem and first block", plan.steps)
    _distil(pair.first, first, small, bar, plan.steps, lr=1e-2)
    each, steps = draw(1, plan.batch_size, plan.side), math.ceil(0.4 * plan.steps)
    _distil(pair.each_block, later, each, show(range(steps), "Block by block", steps), steps, lr=1.5e-3)
    whole = draw(2, plan.batch_size, plan.side)
    bar = show(range(plan.steps), "End to end", plan.steps)
    _distil(pair.whole, [*first, *later], whole, bar, plan.steps, lr=5e-4)
    centre_batch_norm(student, [whole(step) for step in range(plan.steps, plan.steps + 8)])
    rows = np.random.default_rng(plan.seed).permutation(held_back)[:_HELD_BACK]
    images = to_input(reduced(pixels, np.sort(rows), plan.side), device)
    return student, pair.compare(images)


class Pair:
    """Teacher and student, both in evaluation mode (BatchNorm keeps the transplanted statistics), and their losses.

    Each method takes images normalised for B3 and returns one loss per place that is compared.
    """

    def __init__(self, teacher: Any, student: Any, channels: Channels) -> None:
        self.teacher, self.student, self.channels = teacher.eval(), student.eval(), channels

    def first(self, images: Tensor) -> list[Tensor]:
        """Stem (weighing a tenth: what counts is what comes out of the block) and first block."""
        with torch.no_grad():
            theirs = self._their_stem(images)
            goal = self.teacher.blocks[0](theirs)
        ours = self._our_stem(images)
        block = self.student.blocks[0](ours)
        return [
            0.1 * relative_error(ours, theirs[:, self.channels.stem]),
            relative_error(block, goal[:, self.channels.stages[0]]),
        ]

    def each_block(self, images: Tensor) -> list[Tensor]:
        """Every later block and the head, fed with the teacher's features. Blocks that only B3 has stay as they are."""
        losses, incoming = [], self.channels.stages[0]
        with torch.no_grad():
            features = self.teacher.blocks[0](self._their_stem(images))
        for index, outgoing in enumerate(self.channels.stages[1:], start=1):
            for theirs, ours in zip(self.teacher.blocks[index], self.student.blocks[index], strict=False):
                with torch.no_grad():
                    goal = theirs(features)
                losses.append(relative_error(ours(_last(features[:, incoming])), goal[:, outgoing]))
                features, incoming = goal, outgoing
        with torch.no_grad():
            goal = self.teacher.bn2(self.teacher.conv_head(features))
        head = self.student.bn2(self.student.conv_head(_last(features[:, incoming])))
        return [*losses, relative_error(head, goal[:, self.channels.head])]

    def whole(self, images: Tensor) -> list[Tensor]:
        """After each stage, the head and pooling, from pixels."""
        return [relative_error(ours, theirs) for _, ours, theirs in self._features(images)][1:]

    @torch.no_grad()
    def compare(self, images: Tensor) -> Summary:
        """Errors and correlation on `images`."""
        errors = {}
        for name, ours, theirs in self._features(images):
            errors[name] = float(relative_error(ours, theirs))
        both = torch.stack([ours.flatten(), theirs.flatten()])  # the last place is pooling
        return Summary(errors, float(torch.corrcoef(both)[0, 1]), len(images))

    def _features(self, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, the student's features and the teacher's for the same channels, place by place."""
        ours = self._our_stem(images)
        with torch.no_grad():
            theirs = self._their_stem(images)
        yield "stem", ours, theirs[:, self.channels.stem]
        for index, channels in enumerate(self.channels.stages):
            ours = self.student.blocks[index](ours)
            with torch.no_grad():
                theirs = self.teacher.blocks[index](theirs)
            yield f"stage {index + 1}", ours, theirs[:, channels]
        ours = self.student.bn2(self.student.conv_head(ours))
        with torch.no_grad():
            theirs = self.teacher.bn2(self.teacher.conv_head(theirs))[:, self.channels.head]
        yield "head", ours, theirs
        yield "pooled", ours.mean((2, 3)), theirs.mean((2, 3))

    def _their_stem(self, images: Tensor) -> Tensor:
        stem: Tensor = self.teacher.bn1(self.teacher.conv_stem(teacher_input(images)))
        return stem

    def _our_stem(self, images: Tensor) -> Tensor:
        stem: Tensor = self.student.bn1(self.student.conv_stem(images))
        return stem


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of [N, C] or [N, C, H, W] over each channel's variance; a scalar.

    A part of the mean variance is added to each channel's, or channels that hardly vary would rule the mean.
    """
    variance = theirs.var([axis for axis in range(theirs.ndim) if axis != 1], keepdim=True)
    return ((ours - theirs) ** 2 / (variance + 0.3 * variance.mean())).mean()


@torch.no_grad()
def centre_batch_norm(model: nn.Module, some: list[Tensor]) -> None:
    """Give BatchNorm the statistics that `some` batches really have, and change its scale and bias to make up for it.

    What the network computes in evaluation mode stays the same. In training mode, where a batch's own statistics are
    used, it now computes about that, too: fine-tuning starts from the inherited features instead of others.
    """
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    moments: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments[layer].append(torch.stack([inputs[0].mean((0, 2, 3)), inputs[0].square().mean((0, 2, 3))]))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    for images in some:
        model(images)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, square = torch.stack(moments[layer]).mean(0)
        variance = (square - mean**2).clamp_(min=0)
        old = (layer.running_var + layer.eps).sqrt()
        layer.bias.add_(layer.weight * (mean - layer.running_mean) / old)
        layer.weight.mul_((variance + layer.eps).sqrt() / old)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def _distil(
    losses: Callable[[Tensor], list[Tensor]],
    modules: list[nn.Module],
    draw: Callable[[int], Tensor],
    bar: Iterator[int],
    steps: int,
    *,
    lr: float,
) -> None:
    """Adam with ten steps of warm-up and a cosine down to 5 % of `lr`."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr)
    for step in bar:
        rate = lr * min(1, (step + 1) / 10) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses(draw(step))).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()


def _flipped(pixels: Pixels, rows: NDArray[np.int64], rng: np.random.Generator, size: int, side: int) -> Pixels:
    """A step's images, flipped at random: uint8 [size, side, side, 3]."""
    some = reduced(pixels, np.sort(rng.choice(rows, min(size, len(rows)), replace=False)), side)
    for axis in (1, 2):
        if rng.random() < 0.5:
            some = np.flip(some, axis)
    return some


def _last(features: Tensor) -> Tensor:
    return features.contiguous(memory_format=torch.channels_last)
