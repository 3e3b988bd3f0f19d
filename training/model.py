"""The network: timm's EfficientNet-B3 with Swish and nine outputs, and its checkpoint file.

And the distance to its training images that is exported with it. The only module of this room that `export/` imports,
so it stays light: torch and timm, no data, no training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import timm
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
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


class Novelty(nn.Module):
    """How far an image lies from the training images: 0 at their middle, about 1 at the outermost half per cent.

    The largest of three distances, each in units of where that half per cent begins: Mahalanobis distance of image
    statistics to the nearest cluster of training images (Lee et al. 2018, "A simple unified framework for detecting
    out-of-distribution samples"), lack of detail, and Mahalanobis distance and residual of the network's embedding in
    its principal components. `training.ood` fits it. Matrix products, means, logarithms and roots only, so that
    OpenVINO and TensorRT take it.

    Args:
        parameters: what `training.ood.fit` found, float32; `embedding_*` belong to one network's weights.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        for name in sorted(parameters):
            self.register_buffer(name, parameters[name].float())

    def forward(self, images: Tensor, embedding: Tensor) -> Tensor:
        """Float32 [N, 3, 300, 300] of 0…255 and [N, D] → [N, 1], ≥ 0."""
        found = statistics(images)
        usual = (found[:, :-DETAILS] - self.mean) / self.std
        # One matrix a cluster: [N, 1, S] − [K, S] times [K, S, S].
        away = (usual.unsqueeze(1) - self.centres).unsqueeze(2) @ self.whitening
        nearest = away.square().sum(dim=(2, 3)).amin(dim=1, keepdim=True).sqrt()
        blurred = torch.relu((self.detail_mean - found[:, -DETAILS:]) * self.detail_scale)
        centred = embedding - self.embedding_mean
        inside = centred @ self.embedding_basis
        along = (inside * self.embedding_scale).square().mean(dim=1, keepdim=True).sqrt()
        residual = (centred - inside @ self.embedding_basis.T).square().sum(dim=1, keepdim=True).sqrt()
        parts = [nearest, blurred, along, residual * self.embedding_residual]
        return torch.cat(parts, dim=1).amax(dim=1, keepdim=True)


DETAILS: Final = 2
"""How many of the last `statistics` are about detail: small means blurred."""


def statistics(images: Tensor) -> Tensor:
    """Colour, contrast, texture and layout of images: float32 [N, 3, 300, 300] of 0…255 → [N, 27].

    Everything is measured from 3×3 means on, because the public copies of 200×150 pixels have nothing below that and a
    photograph of full size has: sharpness must not make an image strange.
    """
    small = F.avg_pool2d(images, 3) / 255
    red, green, blue = small[:, 0:1], small[:, 1:2], small[:, 2:3]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    whole = torch.cat([grey, blue - grey, red - grey], dim=1)
    mean = whole.mean(dim=(2, 3))
    found, energies = [mean], {}
    for scale in (1, 2, 4, 8):
        level = F.avg_pool2d(whole, scale) if scale > 1 else whole
        across, down = level[:, :, 1:, 1:] - level[:, :, 1:, :-1], level[:, :, 1:, 1:] - level[:, :, :-1, 1:]
        energy = (across.square() + down.square()).mean(dim=(2, 3))
        energies[scale] = energy[:, :1]
        found.append(_log(energy[:, :1]))
        if scale in (1, 4):
            steps = across.abs()[:, :1] + down.abs()[:, :1]
            # Few strong edges (letters, windows) against many weak ones; edges along rows and columns against all.
            spread = (steps.mean(dim=(2, 3)) + 1e-4) / (steps.square().mean(dim=(2, 3)).sqrt() + 1e-4)
            oblique = ((across * down).abs()[:, :1].mean(dim=(2, 3)) + 1e-6) / (energy[:, :1] + 2e-6)
            found += [_log(energy[:, 1:]), torch.log(spread), torch.log(oblique)]
        if scale == 1:
            found.append(torch.relu(1 - 100 * steps).mean(dim=(2, 3)))  # share of perfectly flat places
        if scale == 4:
            found.append(_log((level - mean[:, :, None, None]).square().mean(dim=(2, 3))))
            found.append(level[:, :, 6:19, 6:19].mean(dim=(2, 3)) - mean)
    for clipped in (torch.relu(20 * grey - 19), torch.relu(1 - 20 * grey)):
        found.append(torch.log(clipped.mean(dim=(2, 3)) + 1e-2))
    found.append((small.amax(dim=1) - small.amin(dim=1)).mean(dim=(1, 2)).unsqueeze(1))
    for fine, coarse in ((1, 2), (2, 4)):
        found.append(torch.log((energies[fine].sqrt() + 1e-4) / (energies[coarse].sqrt() + 2e-4)))
    return torch.cat(found, dim=1)


def _log(energy: Tensor) -> Tensor:
    """Of a mean square in units of full scale; the floor is a quarter of a grey level."""
    return torch.log(energy + 1e-6)
