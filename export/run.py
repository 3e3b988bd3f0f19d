"""A finished training run becomes the repository's ONNX file and card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from export import parity, sets
from export.onnx import OUTPUTS, ServedModel, export_onnx
from export.repository import install, read_training_card
from training.model import load_checkpoint


def install_run(
    run: Path, repository: Path, folder: Path | None, count: int | None, say: Callable[[str], None]
) -> None:
    """Export `run` (its folder, or its final.pt), compare with PyTorch, and install it.

    `folder` and `count`: see `sets.chosen`.

    Raises:
        StartupError: the run is not finished or does not fit this installation, or the file differs from the network.
    """
    checkpoint = run / "final.pt" if run.is_dir() else run
    training_card = read_training_card(checkpoint.with_name("card.json"))
    network, metadata = load_checkpoint(checkpoint)
    removed = bool(training_card.get("remove_artifacts", False))
    images = sets.chosen(folder, None, count, removed=removed)
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".export-") as room:
        onnx = Path(room) / "model.onnx"
        say(f"Exporting {checkpoint} …")
        model = ServedModel(network, training_card["temperature"], metadata.get("ood"))
        sha256 = export_onnx(model, onnx)
        say(f"Comparing with PyTorch on {len(images.pixels)} images …")
        theirs = parity.answer(_torch(model), images.pixels)
        found = parity.compare(parity.answer(parity.reference(onnx), images.pixels), theirs, images)
        say(f"largest |Δp| {found.largest:.2e}, mean {found.mean:.2e}, largest |Δcam| {found.largest_cam:.2e}")
        parity.require_close(found)
        bytes_, limit = onnx.stat().st_size, parity.cam_limit(theirs)
        notes = {"parity": found.model_dump(exclude_defaults=True), "cam_limit": limit, "onnx_bytes": bytes_}
        card = install(onnx, sha256, training_card, notes, repository)
    say(f"{card.name} {card.version} ({sha256[:12]}, {bytes_ / 1e6:.1f} MB) is in {repository}")


def _torch(model: ServedModel) -> Callable[..., parity.Answers]:
    def run(pixels: parity.Pixels) -> parity.Answers:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(pixels))
        return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}

    return run
