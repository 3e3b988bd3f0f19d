from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dermserve.image import preprocessing_hash
from dermserve.labels import LEAVES
from training.model import ARCHITECTURE, create_model, save_checkpoint

TEMPERATURE = 1.7


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value, "images": 1, "positives": 1}


def novelty(statistics: int = 25, components: int = 8) -> dict[str, torch.Tensor]:
    """Parameters of `training.model.Novelty` with two clusters, made up."""
    draw = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(1536, components, generator=draw))
    return {
        "mean": torch.full((statistics,), -1.0), "std": torch.full((statistics,), 2.0),
        "centres": torch.randn(2, statistics, generator=draw),
        "whitening": torch.randn(2, statistics, statistics, generator=draw) / 9,
        "detail_mean": torch.full((2,), -0.35), "detail_scale": torch.full((2,), 4.0),
        "embedding_mean": torch.zeros(1536), "embedding_basis": basis,
        "embedding_scale": torch.full((components,), 0.5), "embedding_residual": torch.tensor(0.01),
    }  # fmt: skip


def card_content() -> dict[str, Any]:
    """A model card's content as training leaves it."""
    point = {"threshold": 0.1, "sensitivity": estimate(0.95), "specificity": estimate(0.5), "data": "none"}
    return {
        "name": "melanoma", "version": "0.0.0", "created_at": "2026-01-01T00:00:00+00:00", "architecture": ARCHITECTURE,
        "leaves": list(LEAVES), "input_size": 300, "preprocessing": preprocessing_hash(), "temperature": TEMPERATURE,
        "operating_points": {"sensitivity_95": point}, "metrics": {},
        "ood": {"measured": True, "thresholds": {"ood": 1.0}}, "training": {}, "data": [], "limits": ["random"],
    }  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as training leaves it, with random weights that make the nine leaves differ visibly."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    network = create_model()
    with torch.no_grad():
        network.classifier.weight.mul_(30)
        network.classifier.bias.copy_(torch.linspace(-1, 1, len(LEAVES)))
    metadata: dict[str, Any] = {
        "architecture": ARCHITECTURE, "leaves": list(LEAVES), "input_size": 300,
        "preprocessing": preprocessing_hash(), "temperature": TEMPERATURE, "config": {},
    }  # fmt: skip
    save_checkpoint(folder / "final.pt", network, metadata | {"ood": novelty()})
    (folder / "card.json").write_text(json.dumps(card_content()))
    return folder
