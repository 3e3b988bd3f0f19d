"""The GPU's `preprocess`: the same answers as the CPU's within rounding, the same refusals, and the CPU as its fallback.

DALI's graphs run on the CPU here; where DALI is not installed, these tests are skipped and those of the fallback run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tritonclient.grpc as triton

import deploy.triton
from dermserve import gpu, image, sample
from dermserve.errors import ImageError, ImageUndecodable, StartupError
from dermserve.model_card import CARD_PATH
from dermserve.settings import Settings
from tests.dermserve.encoded import corners, dicom, encode, oriented, swapped_profile
from tests.system.stack import free_ports

LESIONS = [sample.jpeg(seed) for seed in range(12)]
DAMAGED = LESIONS[0][: len(LESIONS[0]) // 2] + b"\xff\xd9"
OTHERS = {
    "cut": LESIONS[0][:9000],
    "cut and closed": DAMAGED,
    "empty": b"",
    "small": encode(corners(20, 20)),
    "png": encode(corners(), "PNG"),
    "dicom": dicom(corners(), jpeg=True),
    "rotated": oriented(corners(), 6),
    "profile": encode(corners(), icc_profile=swapped_profile()),
    "large": encode(corners(1300, 1500)),
}


@pytest.fixture(scope="module")
def prepare() -> gpu.Preparer:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return gpu.Preparer(device_id=None, batch=64, threads=2)


def outcome(data: bytes) -> image.Prepared | ImageError:
    try:
        return image.prepare(data)
    except ImageError as error:
        return error


@pytest.mark.parametrize("count", [1, 12])
def test_the_graphs_give_the_cpu_s_pixels_within_rounding(prepare: gpu.Preparer, count: int) -> None:
    found = prepare(LESIONS[:count])
    for result, data in zip(found, LESIONS[:count], strict=True):
        expected = image.prepare(data)
        assert isinstance(result, image.Prepared)
        assert result.region == expected.region
        difference = np.abs(result.pixels.astype(int) - expected.pixels)
        assert difference.max() <= 8
        assert difference.mean() < 0.5
    assert count == 1 or any(result.region != image.WHOLE for result in found), "one has a frame"


def test_what_the_gpu_does_not_take_gets_exactly_the_cpu_s_answer_in_its_place(prepare: gpu.Preparer) -> None:
    batch = [*OTHERS.values(), LESIONS[1]]
    found = prepare(batch)
    for name, result, data in zip(OTHERS, found, batch, strict=False):
        expected = outcome(data)
        assert type(result) is type(expected), name
        if isinstance(expected, ImageError):
            assert str(result) == str(expected)
        else:
            assert np.array_equal(result.pixels, expected.pixels), name
    assert np.abs(found[-1].pixels.astype(int) - image.prepare(LESIONS[1]).pixels).max() <= 8


def test_a_stream_that_dali_would_fill_in_with_grey_is_refused(prepare: gpu.Preparer) -> None:
    before = prepare.failures
    refused, accepted = prepare([DAMAGED, LESIONS[1]])
    assert isinstance(refused, ImageUndecodable)
    assert isinstance(accepted, image.Prepared)
    assert prepare.failures == before, "the check found it, not DALI"


def test_when_dali_refuses_a_batch_the_cpu_decides_and_the_next_batch_runs(
    prepare: gpu.Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare.failures
    with monkeypatch.context() as patched:
        patched.setattr(simplejpeg, "decode_jpeg", lambda *_a, **_k: None)  # the check lets everything through
        patched.setattr(gpu, "on_cpu", len)
        assert prepare([LESIONS[0], OTHERS["cut"]]) == [len(LESIONS[0]), 9000]
    assert prepare.failures == before + 1
    assert isinstance(prepare(LESIONS[:2])[1], image.Prepared)
    assert prepare.failures == before + 1


def test_without_dali_or_a_gpu_there_is_one_clear_line() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StartupError, match="prepared on the CPU"):
        gpu.Preparer(device_id=0, batch=1, threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[triton.InferenceServerClient, Path]]:
    """The embedded Triton with the configuration of NVIDIA's container, of which it loads `preprocess` alone."""
    folder = tmp_path_factory.mktemp("gpu")
    source, repository = Settings().model_repository, folder / "models"
    shutil.copytree(source / "preprocess", repository / "preprocess", ignore=shutil.ignore_patterns("__pycache__"))
    (repository / CARD_PATH).parent.mkdir(parents=True)
    shutil.copy(source / CARD_PATH, repository / CARD_PATH)
    grpc, http, metrics = free_ports(3)
    settings = Settings(
        state_dir=folder / "state", model_repository=repository,
        triton_grpc_port=grpc, triton_http_port=http, triton_metrics_port=metrics,
    )  # fmt: skip
    child = deploy.triton.child(settings, os.environ)
    command = [part for part in child.command if not part.startswith(("--model-config-name", "--load-model"))]
    log = folder / "triton.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--load-model=preprocess"],
            env={**child.environment}, stdout=out, stderr=out,
        )  # fmt: skip
    client = triton.InferenceServerClient(f"127.0.0.1:{grpc}")
    try:
        _wait(client, process, log)
        yield client, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait(client: triton.InferenceServerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.is_model_ready("preprocess"):
                return
        except triton.InferenceServerException:
            pass
        time.sleep(0.2)
    pytest.fail(log.read_text())


def _infer(client: triton.InferenceServerClient, images: list[bytes]) -> triton.InferResult:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
    return client.infer("preprocess", [tensor])


def test_triton_loads_it_for_the_container_and_falls_back_to_the_cpu_with_one_line(server) -> None:
    client, log = server
    answer = _infer(client, LESIONS[:3])
    for pixels, region, data in zip(answer.as_numpy("pixels"), answer.as_numpy("region"), LESIONS, strict=False):
        expected = image.prepare(data)
        assert np.array_equal(pixels, expected.pixels)
        assert region == pytest.approx(expected.region)
    assert np.isnan(answer.as_numpy("quality")).all(), "flags are left to the step `quality`"
    lines = [line for line in log.read_text().splitlines() if "prepared on the CPU" in line]
    assert len(lines) == 2, "one for each instance"


def test_triton_fails_only_the_request_that_holds_an_unreadable_image(server) -> None:
    client, _ = server
    answers = []
    tensors = []
    for images in ([LESIONS[0]], [LESIONS[1], DAMAGED], [LESIONS[2]]):
        tensor = triton.InferInput("image", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
        tensors.append(tensor)
    for tensor in tensors:
        client.async_infer("preprocess", [tensor], callback=lambda result, error: answers.append((result, error)))
    end = time.monotonic() + 20
    while len(answers) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    errors = [error for _, error in answers if error]
    assert len(answers) == 3
    assert len(errors) == 1
    assert "[image_undecodable] image 1:" in str(errors[0])
