from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training import model as models

TINY = "test_efficientnet"
METADATA: dict[str, Any] = {"architecture": TINY, "leaves": list(LEAVES), "input_size": 300, "preprocessing": "abc"}


def test_the_network_is_b3_with_swish_and_ends_in_one_linear_layer() -> None:
    network = models.create_model()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(10.71e6, rel=0.001)
    assert sum(isinstance(module, nn.SiLU) for module in network.modules()) == 78
    assert network.classifier.weight.shape == (9, 1536)
    # Near-zero logits at the start: the loss is that of a uniform guess.
    with torch.inference_mode():
        chances = network.eval()(torch.randn(2, 3, 64, 64)).softmax(1)
    assert torch.allclose(chances, torch.full((2, 9), 1 / 9), atol=0.1)


def test_a_checkpoint_gives_back_weights_and_metadata(tmp_path: Path) -> None:
    network = models.create_model(architecture=TINY)
    models.save_checkpoint(tmp_path / "final.pt", network, METADATA)
    loaded, metadata = models.load_checkpoint(tmp_path / "final.pt")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.eval()(image), loaded(image))
    assert not loaded.training
    assert metadata == METADATA
    assert [path.name for path in tmp_path.iterdir()] == ["final.pt"]


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="run `dermserve train` first"):
        models.load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(StartupError, match="not a readable checkpoint"):
        models.load_checkpoint(tmp_path / "text.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(StartupError, match="not a checkpoint of dermserve"):
        models.load_checkpoint(tmp_path / "other.pt")
    network = models.create_model(architecture=TINY)
    models.save_checkpoint(tmp_path / "leaves.pt", network, METADATA | {"leaves": list(LEAVES[::-1])})
    with pytest.raises(StartupError, match="was trained for the leaves"):
        models.load_checkpoint(tmp_path / "leaves.pt")


def test_without_a_network_imagenet_weights_are_refused_or_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.timm.create_model

    def offline(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(models.timm, "create_model", offline)
    with pytest.raises(StartupError, match="--set pretrained=false"):
        models.create_model(architecture=TINY, pretrained=True)
    network = models.create_model(architecture=TINY, pretrained=True, from_scratch_if_offline=True)
    assert network.classifier.out_features == 9


def test_normalisation_is_imagenets() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = (torch.tensor([0, 128, 255]) / 255 - torch.tensor(models.MEAN)) / torch.tensor(models.STD)
    assert torch.allclose(models.normalise(images).flatten(), expected, atol=1e-6)
