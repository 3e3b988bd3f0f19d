"""The committed weights as the PyTorch network they were exported from, for servers that run PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from torch import Tensor, nn

from dermserve.labels import LEAVES, rollup_matrix
from dermserve.model_card import ONNX_PATH, ModelCard

_PREFIX = "network."


class Network(nn.Module):
    """timm's EfficientNet-B3 in FP32, calibration and roll-up: float32 [N, 3, 300, 300], normalised → [N, 4]."""

    def __init__(self, repository: Path) -> None:
        super().__init__()
        card = ModelCard.read(repository)
        self.network = timm.create_model(card.architecture, num_classes=len(LEAVES))
        self.network.load_state_dict(_state(self.network, repository / ONNX_PATH))
        self.temperature = card.temperature
        self.register_buffer("rollup", torch.from_numpy(rollup_matrix()))

    def forward(self, images: Tensor) -> Tensor:
        """The reported columns, calibrated: Benign, Suspicious, Malignant, of which Melanoma."""
        # The card's calibration bias is part of the exported classifier's bias.
        return torch.softmax(self.network(images) / self.temperature, dim=1) @ self.rollup


def load(repository: Path) -> Network:
    """The network in evaluation mode."""
    return Network(repository).eval()


def _state(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """A state dict for the unchanged timm model out of the exported file, whose initialisers bear timm's names.

    The exporter folds every batch normalisation into the convolution before it. The convolution gets the folded weight
    back, and the normalisation, which stays where users of timm have it, a mean of 0 and a variance that make it add
    the folded bias and nothing else.
    """
    exported = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    # Copied: the arrays of the file are read-only.
    given = {name.removeprefix(_PREFIX): torch.from_numpy(np.array(array)) for name, array in exported.items()}
    state = {name: given[name] for name in network.state_dict() if name in given}
    folded = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            folded = f"{name}.weight_bias"
        elif isinstance(module, nn.BatchNorm2d):
            bias = given[folded]
            state |= {
                f"{name}.weight": torch.ones_like(bias),
                f"{name}.bias": bias,
                f"{name}.running_mean": torch.zeros_like(bias),
                f"{name}.running_var": torch.full_like(bias, 1 - module.eps),
                f"{name}.num_batches_tracked": torch.tensor(0),
            }
    return state
