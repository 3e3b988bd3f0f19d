"""A run's configuration: a preset file, then the command line, resolved once and saved beside the weights."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dermserve.errors import StartupError
from training.model import ARCHITECTURE


class Stage(BaseModel):
    """A part of the run at one working resolution. Its length is the smaller of `epochs` and its share of the time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(ge=32, le=300, description="Side of the square training images in pixels.")
    epochs: float = Field(gt=0, description="Passes over the training images; a fraction ends within a pass.")
    share: float = Field(1.0, gt=0, description="Share of `--max-minutes`, relative to the other stages.")
    batch_size: int | None = Field(None, ge=1, description="Instead of the run's batch size.")
    lr_scale: float = Field(1.0, gt=0, description="Factor on the learning-rate curve during this stage.")
    frozen_blocks: int = Field(0, ge=0, le=7, description="Stem and first N blocks get no gradient: 3× cheaper steps.")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="Instead of the run's, for short stages.")


class Config(BaseModel):
    """Everything that decides a run's result besides the images. Defaults are those of the preset `recommended`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "recommended"
    architecture: str = ARCHITECTURE
    pretrained: bool = True
    from_scratch_if_offline: bool = False
    initial_weights: str | None = Field(None, description="Checkpoint to start from, e.g. of `dermserve inherit`.")
    drop_rate: float = Field(0.3, ge=0, lt=1)
    drop_path_rate: float = Field(0.2, ge=0, lt=1)

    stages: list[Stage] = Field(min_length=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    lr_final: float = Field(0.02, ge=0, le=1, description="The cosine ends at this fraction of `lr`.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Linear warm-up, as a fraction of the run.")
    weight_decay: float = Field(0.02, ge=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this L2 norm.")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 switches the averaged weights off.")

    sampling: Literal["natural", "balanced"] = "balanced"
    melanoma_share: float = Field(0.3, gt=0, lt=1, description="Drawn share of melanoma within each source.")
    leaf_exponent: float = Field(0.75, ge=0, le=1, description="1: leaves as frequent as they are; 0: all alike.")
    source_exponent: float = Field(1.0, ge=0, le=1, description="1: sources as frequent as they are; 0: all alike.")
    augmentation: Literal["none", "light", "full"] = "full"
    artifacts: float = Field(0.3, ge=0, le=1, description="Chance of a drawn artefact on an image in training.")
    noise: float = Field(0.0, ge=0, le=1, description="Chance of sensor noise; with augmentation=full only.")
    cutout: float = Field(0.0, ge=0, le=1, description="Chance of one erased rectangle; with augmentation=full only.")
    mixup: float = Field(0.0, ge=0, description="Both parameters of the Beta that weighs two mixed images; 0: none.")

    teacher: str | None = Field(None, description="A run's best.pt whose logits are matched; needs `distill`.")
    distill: float = Field(0.0, ge=0, le=1, description="Weight of the teacher's logits against the labels.")
    distill_temperature: float = Field(2.0, gt=0, description="Softens both distributions, 1: as they are.")

    remove_artifacts: bool = Field(
        False, description="Paint hair over before the network sees an image, served ones too."
    )
    adapt_images: int = Field(2048, ge=0, description="Images at 300 px for the last BatchNorm statistics; 0: keep.")
    validation_images: int = Field(0, ge=0, description="At most so many per look between stages; 0: all.")
    validate_every: float = Field(1.0, gt=0, description="Epochs between two looks at the validation images.")
    bootstrap: int = Field(1000, ge=10, description="Resamples behind each 95 % interval.")
    finish_share: float = Field(0.1, ge=0, lt=1, description="Part of `--max-minutes` kept for adapting and measuring.")
    workers: int = Field(4, ge=0, description="Processes that augment images; 0: none beside the training itself.")
    threads: int = Field(0, ge=0, description="torch's CPU threads; 0: torch decides.")
    mixed_precision: bool = Field(True, description="bfloat16 autocast on a GPU; a CPU always trains in float32.")
    compile: bool = Field(False, description="torch.compile: a fifth quicker on a CPU, after two minutes; needs g++.")
    checkpoint_minutes: float = Field(5, ge=0, description="Between two checkpoints within an epoch.")
    seed: int = Field(0, ge=0)
    wandb: Literal["disabled", "offline", "online"] = "offline"
    wandb_images: int = Field(16, ge=0, description="Augmented training images shown in wandb at each stage's start.")

    @model_validator(mode="after")
    def _distillation_is_whole(self) -> Self:
        if (self.teacher is None) != (self.distill == 0):
            raise ValueError("distillation needs both teacher=CHECKPOINT and distill=WEIGHT above 0")
        return self

    @property
    def drawn_artifacts(self) -> float:
        """The chance of a drawn artefact that really applies: lighter augmentation draws none."""
        return self.artifacts if self.augmentation == "full" else 0.0

    def to_json(self) -> str:
        """The resolved configuration as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def resolve(preset: str, assignments: tuple[str, ...] = (), **overrides: Any) -> Config:
    """A preset, changed by `key=value` assignments and by keyword overrides (None: not given).

    Values of assignments are read as JSON (`lr=1e-3`, `pretrained=false`, `stages=[{"resolution": 96, "epochs": 2}]`)
    and as plain text where they are not JSON. The overrides `epochs` and `resolution` replace the preset's stages by a
    single one; whichever of both is not given is taken from the preset's last stage.

    Raises:
        StartupError: the preset, a key or a value is not known.
    """
    if preset not in presets():
        raise StartupError(f"There is no preset {preset!r}; there are: {', '.join(presets())}.")
    values = tomllib.loads(_folder().joinpath(f"{preset}.toml").read_text()) | {"preset": preset}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise StartupError(f"--set {assignment!r} is not of the form key=value.")
        values[key.strip()] = _value(text)
    given = {key: value for key, value in overrides.items() if value is not None}
    stage = {key: given.pop(key) for key in ("epochs", "resolution") if key in given}
    if stage:
        last = values["stages"][-1]
        values["stages"] = [{key: last[key] for key in ("epochs", "resolution")} | stage]
    return validated(values | given)


def validated(values: dict[str, Any]) -> Config:
    """A configuration from plain values.

    Raises:
        StartupError: a key or a value is not valid; the message names each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(": ".join([*_place(fault["loc"]), fault["msg"]]) for fault in error.errors())
        raise StartupError(f"The training configuration is not valid: {faults}.") from error


def _folder() -> Any:
    return files("training").joinpath("presets")


def _place(location: tuple[int | str, ...]) -> list[str]:
    return [".".join(map(str, location))] if location else []


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()
