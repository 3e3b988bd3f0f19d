"""The network: timm's EfficientNet-B3 with Swish and nine outputs, and its checkpoint file.

The only module of this room that `export/` imports, so it stays light: torch and timm, no data, no training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn

from dermserve.errors import StartupError
from dermserve.labels import LEAVES

ARCHITECTURE: Final = "efficientnet_b3"

MEAN: Final = (0.485, 0.456, 0.406)
"""Per channel (R, G, B), for values 0…1: the ImageNet statistics that timm's EfficientNet weights expect."""
STD: Final = (0.229, 0.224, 0.225)

FORMAT: Final = 1
"""Version of the checkpoint file; raised when a reader of the previous one would misread it."""


def create_model(
    *,
    architecture: str = ARCHITECTURE,
    pretrained: bool = False,
    drop_rate: float = 0.3,
    drop_path_rate: float = 0.2,
    from_scratch_if_offline: bool = False,
) -> nn.Module:
    """Create the classifier: normalised float32 [N, 3, H, W] → logits float32 [N, 9] in the order of `labels.LEAVES`.

    It ends in convolution → average pooling → one linear layer (`global_pool`, `classifier`), which is what makes the
    exported class activation map exact. Dropout and stochastic depth act in training only.

    Args:
        architecture: a timm model name; anything else than EfficientNet-B3 is meant for tests.
        pretrained: start from ImageNet weights, which timm downloads once.
        drop_rate: dropout before the linear layer, 0…1.
        drop_path_rate: stochastic depth at the last block, 0…1; it grows linearly from the first.
        from_scratch_if_offline: when the weights cannot be fetched, start from random ones instead of failing.

    Raises:
        StartupError: the ImageNet weights cannot be fetched and starting from scratch was not asked for.
    """
    options: dict[str, Any] = {
        "num_classes": len(LEAVES),
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
    }
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=pretrained, **options)
    except Exception as error:  # timm passes on whatever the hub client, urllib or the socket raised
        if not pretrained:
            raise
        if not from_scratch_if_offline:
            raise StartupError(
                f"The ImageNet weights of {architecture} cannot be fetched ({type(error).__name__}). "
                "Go online once, or train from random weights with --set pretrained=false."
            ) from error
        model = timm.create_model(architecture, pretrained=False, **options)
    # timm draws this layer for 1,000 classes' fan-out; with nine its logits start at ±4 and the first epoch goes into
    # unlearning them. Near zero, training starts at the loss of a uniform guess.
    head = model.get_classifier()  # type: ignore[operator]
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return model.to(memory_format=torch.channels_last)


def normalise(images: Tensor) -> Tensor:
    """Uint8 [N, 3, H, W] → float32 of the same shape: scaled to 0…1, then (x − MEAN) / STD per channel."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1) * 255
    return images.float().sub_(mean).div_(std)


def save_checkpoint(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Write the weights and `metadata` in one step: a reader finds the old file or the new one, never half of one."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, {"format": FORMAT, "state_dict": state, "metadata": metadata})


def load_checkpoint(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint of `save_checkpoint`.

    Returns:
        The model on the CPU in evaluation mode, and its metadata: `architecture`, `leaves`, `input_size`,
        `preprocessing` (hash), `config` and, in a finished run's `final.pt`, `temperature`.

    Raises:
        StartupError: the file is missing, is no checkpoint of dermserve, or was trained for other leaves.
    """
    content = _read(path)
    metadata: dict[str, Any] = content["metadata"]
    if tuple(metadata["leaves"]) != LEAVES:
        raise StartupError(f"{path} was trained for the leaves {metadata['leaves']}, not for {list(LEAVES)}.")
    model = create_model(architecture=metadata["architecture"])
    model.load_state_dict(content["state_dict"])
    return model.eval(), metadata


def _read(path: Path) -> dict[str, Any]:
    try:
        # weights_only: a checkpoint is data, and loading one from a stranger must not run their code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StartupError(f"There is no checkpoint at {path}: run `dermserve train` first.") from error
    except Exception as error:
        raise StartupError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "state_dict" not in content:
        raise StartupError(f"{path} is not a checkpoint of dermserve (format {FORMAT}).")
    return content


def require_features(path: Path) -> None:
    """Check that there is a checkpoint to start from, before anything that takes long.

    Raises:
        StartupError: the file is missing; the message names the ways to go on.
    """
    if not path.exists():
        raise StartupError(
            f"There are no initial weights at {path}: make them with `dermserve inherit --data DIR --out {path}`, or "
            "start from timm's with --set initial_weights=null --set pretrained=true, or from random ones with "
            "--set initial_weights=null."
        )


def load_features(model: nn.Module, path: Path) -> None:
    """Take everything but the last layer from the checkpoint at `path`: another run's, or one of `dermserve inherit`.

    Raises:
        StartupError: the file is missing, is no checkpoint of dermserve, or belongs to another architecture.
    """
    require_features(path)
    content = _read(path)
    own = model.state_dict()
    found = {name: tensor for name, tensor in content["state_dict"].items() if not name.startswith("classifier.")}
    wanted = {name for name in own if not name.startswith("classifier.")}
    if set(found) != wanted or any(own[name].shape != tensor.shape for name, tensor in found.items()):
        raise StartupError(f"{path} holds the weights of another architecture.")
    model.load_state_dict(own | found)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` beside `path`, flush to the disk, rename over it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
