import math

import pytest

from dermserve.errors import StartupError
from training import config
from training.config import Stage
from training.schedule import Progress, Schedule


def test_every_preset_resolves() -> None:
    assert config.presets() == ["cpu", "quick", "recommended", "seed"]
    for name in config.presets():
        assert config.resolve(name).preset == name


def test_the_seed_preset_is_the_published_one() -> None:
    seed = config.resolve("seed")
    assert (seed.lr, seed.batch_size, seed.weight_decay, seed.workers, seed.lr_final) == (1e-5, 128, 1e-5, 8, 0.0)
    assert [(stage.resolution, stage.epochs) for stage in seed.stages] == [(300, 35)]


def test_assignments_and_overrides_change_the_preset() -> None:
    changed = config.resolve("recommended", ("lr=1e-4", "pretrained=false", "sampling=natural"), epochs=2, wandb=None)
    assert (changed.lr, changed.pretrained, changed.sampling) == (1e-4, False, "natural")
    assert [(stage.resolution, stage.epochs) for stage in changed.stages] == [(300, 2)]
    alone = config.resolve("cpu", epochs=1, resolution=128).stages
    assert alone == [
        Stage(resolution=128, epochs=1)
    ]  # nothing of the last stage it replaces, such as its frozen blocks
    assert changed.wandb == "offline"


def test_the_saved_configuration_is_the_resolved_one() -> None:
    changed = config.resolve("cpu", ("lr=2e-4",))
    assert config.Config.model_validate_json(changed.to_json()) == changed


@pytest.mark.parametrize(
    ("preset", "assignment", "says"),
    [
        ("best", "lr=1", "no preset 'best'; there are: cpu, quick"),
        ("quick", "learning_rate=1", "learning_rate: Extra inputs"),
        ("quick", "lr=fast", "lr: Input should be a valid number"),
        ("quick", "lr", "not of the form key=value"),
        ("quick", 'stages=[{"resolution": 600, "epochs": 1}]', "stages.0.resolution"),
    ],
)
def test_what_is_not_known_is_refused(preset: str, assignment: str, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        config.resolve(preset, (assignment,))


def schedule(max_minutes: float | None = None) -> Schedule:
    stages = [Stage(resolution=64, epochs=6, share=3), Stage(resolution=128, epochs=4, share=1, lr_scale=0.5)]
    values = {"stages": stages, "batch_size": 10, "lr": 1.0, "lr_final": 0.1, "warmup": 0.1}
    return Schedule(config.Config.model_validate(values), images=100, max_minutes=max_minutes)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    plan = schedule()
    # 60 + 40 steps: step 5 is half of the warm-up of 10, step 55 half of the cosine's 90.
    assert plan.learning_rate(Progress(batch=5)) == pytest.approx(0.5)
    assert plan.learning_rate(Progress(epoch=1)) == pytest.approx(1.0)
    assert plan.learning_rate(Progress(epoch=5, batch=5)) == pytest.approx(0.1 + 0.9 / 2)
    # Stage 2 has a factor of ½; its end is the end of the cosine.
    assert plan.learning_rate(Progress(stage=1, epoch=4)) == pytest.approx(0.5 * 0.1)
    phase = (0.8 - 0.1) / 0.9
    expected = 0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * phase)) / 2)
    assert plan.learning_rate(Progress(stage=1, epoch=2)) == pytest.approx(expected)


def test_the_clock_ends_a_stage_that_its_steps_would_not() -> None:
    plan = schedule(max_minutes=4)
    assert plan.stage_fraction(0, Progress(batch=1, seconds=[90.0, 0.0])) == pytest.approx(0.5)
    assert plan.fraction(Progress(batch=1, seconds=[90.0, 0.0])) == pytest.approx(0.5 * 0.75)
    assert plan.stage_fraction(0, Progress(batch=1, seconds=[180.0, 0.0])) == 1
    # On a machine faster than planned, the epochs end it.
    assert plan.stage_fraction(0, Progress(epoch=6, seconds=[10.0, 0.0])) == 1


def test_distillation_needs_both_a_teacher_and_its_weight() -> None:
    for assignment in ("teacher=runs/first/best.pt", "distill=0.5"):
        with pytest.raises(StartupError, match=r"not valid: Value error, distillation needs both"):
            config.resolve("quick", (assignment,))
    both = config.resolve("quick", ("teacher=runs/first/best.pt", "distill=0.5"))
    assert (both.teacher, both.distill) == ("runs/first/best.pt", 0.5)


def test_only_the_gpu_preset_mixes_and_erases() -> None:
    """The others promise what they were when runs were started with them."""
    for name in config.presets():
        found = config.resolve(name)
        assert (found.noise > 0, found.cutout > 0, found.mixup > 0) == 3 * (name == "recommended",)
        assert found.teacher is None
