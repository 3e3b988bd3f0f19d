from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from deploy import cores, repository
from dermserve import engine
from dermserve.errors import StartupError
from dermserve.model_card import EngineRecord, ModelCard
from dermserve.settings import Settings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    copy = tmp_path / "models"
    shutil.copytree(Settings().model_repository, copy, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    return copy


def fitted(models: Path, **options: Any) -> dict[str, Any]:
    repository.fit(models, Settings(**options))
    paths = {path.parent.name: path for path in models.glob("*/config.pbtxt")}
    paths["openvino"] = models / "melanoma/configs/openvino.pbtxt"
    paths["interactive"] = models / "interactive/configs/openvino.pbtxt"
    return {name: text_format.Parse(path.read_text(), ModelConfig()) for name, path in paths.items()}


def bulk_queue(config: Any) -> int:
    return int(config.dynamic_batching.priority_queue_policy[2].max_queue_size)


@pytest.mark.parametrize(("available", "instances", "quality"), [(1, 1, 1), (2, 2, 1), (3, 3, 2), (16, 16, 8)])
def test_instances_and_queues_follow_the_cores_and_a_gpu_is_left_alone(
    models: Path, available: int, instances: int, quality: int
) -> None:
    configs = fitted(models, cpu_cores=available)
    assert configs["openvino"].instance_group[0].count == instances
    assert configs["quality"].instance_group[0].count == quality
    assert bulk_queue(configs["openvino"]) == 128 * available
    assert configs["classifier"].instance_group[0].count == 2
    assert bulk_queue(configs["classifier"]) == 4096


def test_nobody_is_refused_by_a_timeout_while_a_caller_would_still_wait(models: Path) -> None:
    policies = fitted(models, inference_timeout_s=120)["openvino"].dynamic_batching.priority_queue_policy
    assert policies[2].default_timeout_microseconds == 120_000_000
    assert policies[1].default_timeout_microseconds == 40_000_000
    assert 0 < policies[1].max_queue_size < policies[2].max_queue_size


def test_the_precision_is_the_one_that_the_cards_gate_let_pass(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_instructions", lambda: {"avx512_vnni"})
    card = ModelCard.read(models)
    for precision in ("INT8", "FP32"):
        record = EngineRecord(precision=precision, sha256="0" * 64)
        card.model_copy(update={"engines": {"openvino": record}}).write(models)
        assert fitted(models)["openvino"].parameters["precision"].string_value == precision
        assert fitted(models, precision="FP32")["openvino"].parameters["precision"].string_value == "FP32"


def test_all_of_a_cpu_and_all_steps_of_a_gpu_offer_the_same_outputs(models: Path) -> None:
    configs = fitted(models)
    outputs = {
        name: {output.name: (output.data_type, tuple(output.dims)) for output in configs[name].output}
        for name in configs
    }
    assert outputs["openvino"] == outputs["melanoma"]
    made = {
        step.output_map[name]: outputs[step.model_name][name]
        for step in configs["melanoma"].ensemble_scheduling.step
        for name in step.output_map
    }
    assert {name: made[name] for name in outputs["melanoma"]} == outputs["melanoma"]
    assert configs["openvino"].input == configs["melanoma"].input
    for name in ("openvino", "melanoma"):
        assert {"runtime", "precision"} <= set(configs[name].parameters)


def test_people_have_the_same_model_with_processes_of_their_own_that_come_first(models: Path) -> None:
    configs = fitted(models, cpu_cores=3)
    people, stream = configs["interactive"], configs["openvino"]
    assert people.name == "interactive"
    assert (models / "interactive/1/model.py").read_text() == (models / "melanoma/1/model.py").read_text()
    assert people.output == stream.output
    assert people.parameters["precision"] == stream.parameters["precision"]
    assert people.instance_group[0].count == stream.instance_group[0].count == 3
    niceness = [int(one.parameters["niceness"].string_value) for one in (people, stream)]
    assert niceness[0] < niceness[1]
    assert list(people.dynamic_batching.preferred_batch_size) == [1], "nobody waits behind another one's image"


def test_a_file_that_is_no_configuration_is_named(models: Path) -> None:
    (models / "preprocess/config.pbtxt").write_text("name preprocess")
    with pytest.raises(StartupError, match=r"preprocess/config\.pbtxt is no model configuration"):
        repository.fit(models, Settings())


def group(root: Path, path: str, **files: str) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("parent", "own", "counted"),
    [("max 100000", "400000 100000", 4), ("150000 100000", "max 100000", 1), ("max 100000", "20000 100000", 1)],
)
def test_a_containers_quota_counts_and_so_does_that_of_the_group_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str, own: str, counted: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pods/this\n")
    group(tmp_path, "pods", cpu__max=parent)
    group(tmp_path, "pods/this", cpu__max=own)
    assert cores.available(tmp_path) == counted


def test_quotas_of_the_older_kind_and_machines_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores.available(tmp_path) == 64
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert cores.available(tmp_path) == 3
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="-1")
    assert cores.available(tmp_path) == 64
