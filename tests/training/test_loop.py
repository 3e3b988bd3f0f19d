from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training import loop, objective
from training.config import Config
from training.model import create_model, load_checkpoint, save_checkpoint
from training.schedule import Progress

VALUES: dict[str, Any] = {
    "architecture": "test_efficientnet",
    "pretrained": False,
    "stages": [{"resolution": 32, "epochs": 2}, {"resolution": 48, "epochs": 1.5, "frozen_blocks": 1}],
    "batch_size": 8,
    "lr": 1e-3,
    "ema_decay": 0.9,
    "workers": 0,
    "threads": 1,
    "artifacts": 0.5,
    "noise": 0.5,
    "cutout": 0.5,
    "mixup": 0.2,
    "checkpoint_minutes": 0,
    "wandb": "disabled",
}
METADATA = {"architecture": "test_efficientnet", "leaves": list(LEAVES), "input_size": 300}


class Silent:
    def samples(self, progress: Progress, images: Tensor) -> None: ...

    def step(self, progress: Progress, fraction: float, loss: float, rate: float) -> None: ...

    def look(self, entry: dict[str, Any]) -> None: ...


class Recorder(Silent):
    """Keeps the images that a stage is announced with."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, Tensor]] = []

    def samples(self, progress: Progress, images: Tensor) -> None:
        self.seen.append((progress.stage, progress.step, images))


class Killed(Silent):
    """Ends the process, as far as the trainer can tell, after a number of steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, progress: Progress, fraction: float, loss: float, rate: float) -> None:
        if progress.step > self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def images() -> loop.Images:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 9, 56)
    pixels = rng.integers(0, 256, (56, 300, 300, 3), np.uint8)
    return loop.Images(pixels, targets, np.full(40, 1 / 40), np.arange(40), np.arange(40, 56))


def trainer(
    folder: Path, images: loop.Images, watcher: Silent | None = None, *, resume: bool = False, **changes: Any
) -> loop.Trainer:
    folder.mkdir(exist_ok=True)
    config = Config.model_validate(VALUES | changes)
    device = torch.device("cpu")
    return loop.Trainer(config, images, folder, METADATA, watcher or Silent(), device=device, resume=resume)


def state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / loop.STATE, weights_only=True)
    content["progress"].pop("seconds")
    for entry in content["progress"]["history"]:
        entry.pop("minutes")
    return content


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for position, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}[{position}]")
    else:
        assert first == second, where


@pytest.mark.parametrize("killed_after", [3, 12])  # within the first epoch, and within the second stage
def test_a_run_killed_within_an_epoch_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, images: loop.Images, killed_after: int
) -> None:
    trainer(tmp_path / "whole", images).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", images, Killed(killed_after)).fit()
    torch.rand(killed_after)  # a new process has another random state
    resumed = trainer(tmp_path / "killed", images, resume=True)
    assert resumed.progress.step == killed_after
    resumed.fit()
    whole = state(tmp_path / "whole")
    assert whole["progress"]["step"] == 18
    assert len(whole["progress"]["history"]) == 4
    assert_equal(whole, state(tmp_path / "killed"))


def test_each_stage_is_announced_with_its_own_augmented_images(tmp_path: Path, images: loop.Images) -> None:
    watcher = Recorder()
    stages = [{"resolution": 32, "epochs": 0.4}, {"resolution": 48, "epochs": 0.2}]
    trainer(tmp_path, images, watcher, stages=stages).fit()
    assert [(stage, step) for stage, step, _ in watcher.seen] == [(0, 0), (1, 2)]
    for (_, _, shown), side in zip(watcher.seen, (32, 48), strict=True):
        assert (tuple(shown.shape), shown.dtype) == ((8, 3, side, side), torch.uint8)


def test_resuming_needs_no_initial_weights(tmp_path: Path, images: loop.Images) -> None:
    initial = tmp_path / "initial.pt"
    save_checkpoint(initial, create_model(architecture="test_efficientnet"), METADATA)
    changes = {"initial_weights": str(initial), "stages": [{"resolution": 32, "epochs": 0.4}]}
    first = trainer(tmp_path / "run", images, **changes)
    first.fit()
    initial.unlink()
    resumed = trainer(tmp_path / "run", images, resume=True, **changes)
    assert_equal(resumed.model.state_dict(), first.model.state_dict())
    with pytest.raises(StartupError, match="dermserve inherit --data DIR --out"):
        trainer(tmp_path / "another", images, **changes)


def test_a_configuration_from_before_an_option_existed_is_the_same_with_it_off(
    tmp_path: Path, images: loop.Images
) -> None:
    off: dict[str, Any] = {"noise": 0, "cutout": 0, "mixup": 0, "stages": [{"resolution": 32, "epochs": 0.4}]}
    trainer(tmp_path, images, **off).fit()
    content = torch.load(tmp_path / loop.STATE, weights_only=True)
    for key in ("noise", "cutout", "mixup", "teacher", "distill", "distill_temperature", "wandb_images"):
        del content["config"][key]
    torch.save(content, tmp_path / loop.STATE)
    assert trainer(tmp_path, images, resume=True, **off).progress.step == 2


def test_a_teachers_logits_train_like_labels_and_end_up_in_the_curve(tmp_path: Path, images: loop.Images) -> None:
    stages = [{"resolution": 32, "epochs": 1}]
    trainer(tmp_path / "teacher", images, stages=stages).fit()
    distill = {"teacher": str(tmp_path / "teacher" / loop.BEST), "distill": 1.0, "stages": stages}
    trainer(tmp_path / "student", images, **distill).fit()
    trainer(tmp_path / "alone", images, stages=stages).fit()
    student, alone = (state(tmp_path / name)["progress"]["history"][0] for name in ("student", "alone"))
    # An untrained teacher is nearly uniform, and so is the student: nothing to diverge from, unlike the labels.
    assert student["train_loss"] < 0.5 < alone["train_loss"]


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(tmp_path: Path, images: loop.Images) -> None:
    stages = [{"resolution": 32, "epochs": 0.4}]
    killed = trainer(tmp_path / "killed", images, stages=stages, checkpoint_minutes=60)
    killed.watcher = Killed(after=0)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    trainer(tmp_path / "killed", images, stages=stages, checkpoint_minutes=60, resume=True).fit()
    trainer(tmp_path / "whole", images, stages=stages).fit()
    for name, tensor in state(tmp_path / "whole")["model"].items():
        assert torch.equal(tensor, state(tmp_path / "killed")["model"][name]), name


def test_another_seed_ends_elsewhere(tmp_path: Path, images: loop.Images) -> None:
    stages = [{"resolution": 32, "epochs": 0.4}]
    for seed in (0, 1):
        trainer(tmp_path / str(seed), images, stages=stages, seed=seed).fit()
    first, second = (state(tmp_path / str(seed))["model"]["classifier.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_checkpoint_of_other_images_or_settings_is_refused(tmp_path: Path, images: loop.Images) -> None:
    trainer(tmp_path, images, stages=[{"resolution": 32, "epochs": 0.2}]).fit()
    with pytest.raises(StartupError, match="another configuration"):
        trainer(tmp_path, images, resume=True, lr=1e-5)
    others = loop.Images(images.pixels, images.targets[::-1], images.weights, images.train, images.validation)
    with pytest.raises(StartupError, match="other images"):
        trainer(tmp_path, others, resume=True, stages=[{"resolution": 32, "epochs": 0.2}])
    with pytest.raises(StartupError, match=r"no last\.pt"):
        trainer(tmp_path / "none", images, resume=True)


def test_steps_that_are_not_finite_change_no_weight_and_then_end_the_run(
    tmp_path: Path, images: loop.Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.nn.functional.cross_entropy
    monkeypatch.setattr(objective.functional, "cross_entropy", lambda *a, **k: real(*a, **k) * torch.nan)
    broken = trainer(tmp_path, images, stages=[{"resolution": 32, "epochs": 30}])
    before = {name: parameter.clone() for name, parameter in broken.model.named_parameters()}
    with pytest.raises(StartupError, match="not finite 20 steps in a row"):
        broken.fit()
    assert broken.progress.skipped == 20
    for name, parameter in broken.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_step_that_is_not_finite_inside_the_network_leaves_its_statistics_alone(
    tmp_path: Path, images: loop.Images
) -> None:
    run = trainer(tmp_path, images, stages=[{"resolution": 32, "epochs": 0.4}])

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        return (inputs[0] * torch.inf,) if module.training and run.progress.step == 1 else None

    run.model.blocks[1].register_forward_pre_hook(spoil)
    run.fit()
    assert run.progress.skipped == 1
    for network in (run.model, run.averaged):
        for name, tensor in network.state_dict().items():
            assert tensor.isfinite().all(), name


def test_a_run_is_not_resumed_with_images_prepared_from_something_else(tmp_path: Path, images: loop.Images) -> None:
    stages = [{"resolution": 32, "epochs": 0.2}]
    trainer(tmp_path, replace(images, content="prepared-1"), stages=stages).fit()
    trainer(tmp_path, replace(images, content="prepared-1"), stages=stages, resume=True)
    with pytest.raises(StartupError, match="another preparation"):
        trainer(tmp_path, replace(images, content="prepared-2"), stages=stages, resume=True)


def test_frozen_blocks_stay_while_the_rest_learns(tmp_path: Path, images: loop.Images) -> None:
    frozen = trainer(tmp_path, images, stages=[{"resolution": 32, "epochs": 0.4, "frozen_blocks": 2}])
    before = {name: parameter.clone() for name, parameter in frozen.model.named_parameters()}
    frozen.fit()
    changed = {name for name, parameter in frozen.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "classifier.weight" in changed
    assert any(name.startswith("blocks.2.") for name in changed)
    assert not [name for name in changed if name.startswith(("conv_stem", "bn1", "blocks.0.", "blocks.1."))]


def test_the_average_lags_behind_the_weights_and_best_is_the_average(tmp_path: Path, images: loop.Images) -> None:
    run = trainer(tmp_path, images, stages=[{"resolution": 32, "epochs": 1}])
    start = run.model.classifier.weight.detach().clone()
    run.fit()
    now, mean = run.model.classifier.weight.detach(), run.averaged.classifier.weight.detach()
    assert 0 < (mean - start).norm() < (now - start).norm()
    best, metadata = load_checkpoint(tmp_path / loop.BEST)
    assert torch.equal(best.classifier.weight, mean)
    assert metadata["validation"]["val_images"] == 16
