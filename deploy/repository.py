"""The model repository fitted to one machine: instances and queues from its cores, and the precision.

The files in the tree are written for two cores and for callers that wait 30 s. What a stack serves is a copy of them,
and only that copy is changed.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Final

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from deploy import cores
from dermserve import engine
from dermserve.client import INTERACTIVE, MODEL
from dermserve.errors import StartupError
from dermserve.model_card import ModelCard
from dermserve.settings import Settings

_WRITTEN_FOR_CORES: Final = 2
_WRITTEN_FOR_S: Final = 30.0


def fit(repository: Path, settings: Settings) -> None:
    """Rewrite every configuration below `repository` in place.

    Raises:
        StartupError: one of them is no model configuration.
    """
    _add_interactive(repository)
    available = settings.cpu_cores or cores.available()
    for path in sorted([*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")]):
        config = _read(path)
        _fit_to_cores(config, available)
        _fit_timeouts(config, settings.inference_timeout_s / _WRITTEN_FOR_S)
        if path.name == "openvino.pbtxt":
            config.parameters["precision"].string_value = _precision(repository, settings)
        path.write_text(text_format.MessageToString(config))


def _add_interactive(repository: Path) -> None:
    """A copy of the CPU's `melanoma` for people's images, which are then computed beside the stream and not after it."""
    folder = repository / INTERACTIVE
    shutil.copytree(repository / MODEL, folder, ignore=shutil.ignore_patterns("config.pbtxt"), dirs_exist_ok=True)
    path = folder / "configs/openvino.pbtxt"
    config = _read(path)
    config.name = INTERACTIVE
    config.dynamic_batching.preferred_batch_size[:] = [1]
    config.parameters["niceness"].string_value = "0"
    path.write_text(text_format.MessageToString(config))


def _read(path: Path) -> ModelConfig:
    try:
        return text_format.Parse(path.read_text(), ModelConfig())
    except text_format.ParseError as error:
        raise StartupError(f"{path} is no model configuration: {error}") from error


def _precision(repository: Path, settings: Settings) -> str:
    """What the settings ask for, else the best that passed the gate and that this processor computes as it did there."""
    return engine.served(ModelCard.read(repository)) if settings.precision == "auto" else settings.precision


def _fit_to_cores(config: ModelConfig, available: int) -> None:
    """As many instances and as long queues per core as written; a GPU's are its own."""
    share = available / _WRITTEN_FOR_CORES
    on_cores = [group for group in config.instance_group if group.kind == ModelInstanceGroup.KIND_CPU]
    for group in on_cores:
        group.count = math.ceil(group.count * share)
    if on_cores:
        for policy in config.dynamic_batching.priority_queue_policy.values():
            policy.max_queue_size = math.ceil(policy.max_queue_size * share)


def _fit_timeouts(config: ModelConfig, share: float) -> None:
    for policy in config.dynamic_batching.priority_queue_policy.values():
        policy.default_timeout_microseconds = round(policy.default_timeout_microseconds * share)
