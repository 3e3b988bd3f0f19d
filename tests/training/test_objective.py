from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training.config import Config
from training.model import create_model, save_checkpoint
from training.objective import Objective, divergence, load_teacher

METADATA: dict[str, Any] = {"architecture": "test_efficientnet", "leaves": list(LEAVES)}
CPU = torch.device("cpu")


def config(**changes: Any) -> Config:
    return Config.model_validate({"stages": [{"resolution": 32, "epochs": 1}], "label_smoothing": 0.0} | changes)


class Seen(nn.Module):
    """A linear network that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(12, 9)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def test_without_options_it_is_the_cross_entropy() -> None:
    model, images, targets = Seen(), torch.randn(5, 3, 2, 2), torch.arange(5)
    loss = Objective(config(label_smoothing=0.1), CPU)(model, images, targets)
    assert torch.equal(model.images, images)
    assert torch.equal(loss, functional.cross_entropy(model(images), targets, label_smoothing=0.1))


def test_mixup_weighs_labels_like_pixels_and_follows_the_seed() -> None:
    model, images, targets = Seen(), torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 4, 5])
    mixing = Objective(config(mixup=1.0), CPU)
    torch.manual_seed(0)
    loss = mixing(model, images, targets)
    other = images.roll(1, 0)
    # Find the weight from the pixels, then expect the labels to carry the same.
    weight = float(((model.images - other) / (images - other)).median())
    assert 0 < weight < 1
    assert torch.allclose(model.images, weight * images + (1 - weight) * other, atol=1e-5)
    logits = model(model.images)
    expected = weight * functional.cross_entropy(logits, targets)
    expected = expected + (1 - weight) * functional.cross_entropy(logits, targets.roll(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.manual_seed(0)
    assert torch.equal(mixing(model, images, targets), loss)
    torch.manual_seed(1)
    assert not torch.equal(mixing(model, images, targets), loss)


def test_the_divergence_is_zero_for_equal_predictions_and_as_steep_as_the_cross_entropy() -> None:
    goal = torch.randn(4, 9)
    assert divergence(goal + 3, goal, 2.0).item() == pytest.approx(0, abs=1e-5)
    steep = []
    for temperature in (1.0, 4.0):
        logits = (goal + 0.1 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))).requires_grad_()
        divergence(logits, goal, temperature).backward()
        steep.append(float(logits.grad.norm()))
    assert steep[0] == pytest.approx(steep[1], rel=0.7)


def teacher(path: Path, **metadata: Any) -> nn.Module:
    torch.manual_seed(5)
    network = create_model(architecture="test_efficientnet").eval()
    nn.init.normal_(network.classifier.weight, std=0.5)
    save_checkpoint(path, network, METADATA | metadata)
    return network


def test_a_student_learns_the_teachers_answers_from_images_whose_labels_say_nothing(tmp_path: Path) -> None:
    goal = teacher(tmp_path / "best.pt")
    torch.manual_seed(0)
    student = create_model(architecture="test_efficientnet").eval()
    objective = Objective(config(teacher=str(tmp_path / "best.pt"), distill=1.0), CPU)
    images, targets = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    with torch.no_grad():
        answers = goal(images)
        before = divergence(student(images), answers, 1.0)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        objective(student, images, targets).backward()
        optimizer.step()
    with torch.no_grad():
        assert divergence(student(images), answers, 1.0) < 0.2 * before
        assert (student(images).argmax(1) == answers.argmax(1)).float().mean() > 0.7


def test_half_of_the_weight_is_half_of_both(tmp_path: Path) -> None:
    goal = teacher(tmp_path / "best.pt")
    student, images, targets = create_model(architecture="test_efficientnet").eval(), torch.randn(3, 3, 32, 32), None
    targets = torch.tensor([0, 4, 8])
    loss = Objective(config(teacher=str(tmp_path / "best.pt"), distill=0.5), CPU)(student, images, targets)
    logits = student(images)
    expected = (functional.cross_entropy(logits, targets) + divergence(logits, goal(images), 2.0)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_finished_model_is_no_teacher(tmp_path: Path) -> None:
    teacher(tmp_path / "final.pt", temperature=1.3)
    with pytest.raises(StartupError, match=r"a teacher is the best\.pt beside it"):
        Objective(config(teacher=str(tmp_path / "final.pt"), distill=0.5), CPU)


@pytest.mark.parametrize(
    ("about", "message"),
    [({"inherited": {"steps": 1}}, "knows nothing"), ({"preprocessing": "other"}, "prepared in another way")],
)
def test_weights_that_cannot_teach_these_images_are_refused(
    tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    teacher(tmp_path / "best.pt", **{"preprocessing": "ours"} | about)
    with pytest.raises(StartupError, match=message):
        load_teacher(tmp_path / "best.pt", "ours")
