"""The contract, against the real running stack: Triton's gRPC, the JSON API and `dermserve predict`."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from dermserve import engine, sample
from dermserve.client import OUTPUT_SHAPES, TritonClient
from dermserve.errors import ImageUndecodable
from dermserve.model_card import ModelCard
from dermserve.settings import Settings
from tests.dermserve.encoded import corners, dicom, encode, png_bomb
from tests.system.stack import DERMSERVE, Stack

HEADER = "filename,Benign,Suspicious,Malignant,Melanoma"


def test_a_script_without_dermserve_gets_probabilities_for_a_batch(stack: Stack, samples: Path) -> None:
    script = textwrap.dedent("""
        import sys, numpy as np, tritonclient.grpc as triton
        images = [open(path, "rb").read() for path in sys.argv[2:]]
        tensor = triton.InferInput("image", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
        answer = triton.InferenceServerClient(sys.argv[1]).infer("melanoma", [tensor])
        assert not any(name.startswith("dermserve") for name in sys.modules)
        np.save(sys.stdout.buffer, answer.as_numpy("probabilities"))
    """)
    files = sorted(samples.glob("*.jpg"))[:4]
    out = subprocess.run([sys.executable, "-c", script, stack.grpc, *map(str, files)], capture_output=True, check=True)
    rows = np.load(io.BytesIO(out.stdout))
    assert rows.shape == (4, 4)
    assert rows.dtype == np.float32
    assert rows[:, :3].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (rows[:, 3] <= rows[:, 2] + 1e-6).all()
    assert len({tuple(row) for row in rows.round(6)}) == 4, "four pictures, four answers"


def test_every_output_has_its_shape(stack: Stack) -> None:
    client = TritonClient([stack.grpc])
    images = [sample.jpeg(seed) for seed in range(3)]
    answer = client.infer(images, list(OUTPUT_SHAPES))
    for name, shape in OUTPUT_SHAPES.items():
        assert answer[name].shape == (3, *shape)
        assert answer[name].dtype == np.float32
    assert answer["diagnoses"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    # That the map adds up to the melanoma logit is tested in tests/export; here: it is of this image and no constant.
    assert answer["cam"].std(axis=(1, 2)).min() > 0
    assert np.ptp(answer["cam"].mean(axis=(1, 2))) > 0


def test_one_image_gets_the_same_answer_alone_and_in_any_batch(stack: Stack) -> None:
    client = TritonClient([stack.grpc])
    images = [sample.jpeg(seed) for seed in range(8)]
    together = client.infer(images, ["probabilities"])["probabilities"]
    alone = np.concatenate([client.infer([image], ["probabilities"])["probabilities"] for image in images])
    assert np.abs(together - alone).max() < 1e-5


def test_http_grpc_and_predict_agree(stack: Stack, api_key: str, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = stack.run("predict", str(samples), "--csv", str(out), "--concurrency", "4")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout
    with out.open() as file:
        assert file.readline().strip() == HEADER
    rows = list(csv.DictReader(out.open()))
    assert [row["filename"] for row in rows] == sorted(path.name for path in samples.iterdir())
    grpc = TritonClient([stack.grpc]).infer(
        [(samples / row["filename"]).read_bytes() for row in rows], ["probabilities"]
    )["probabilities"]
    for row, direct in zip(rows, grpc, strict=True):
        answer = stack.predict((samples / row["filename"]).read_bytes(), api_key)
        http = [answer.body["probabilities"][name.lower()] for name in HEADER.split(",")[1:]]
        table = [float(row[name]) for name in HEADER.split(",")[1:]]
        assert table == pytest.approx(http, abs=1e-4)
        assert table == pytest.approx(direct, abs=1e-4)
    assert not out.with_suffix(".errors.csv").exists()


def test_the_json_api_keeps_its_contract(stack: Stack, api_key: str) -> None:
    data = sample.jpeg(901)
    first = stack.predict(data, api_key, "?cam=true")
    assert first.status == 201
    body = first.body
    card = ModelCard.read(Settings().model_repository)
    assert set(body) == {
        "id", "created_at", "image", "probabilities", "diagnoses", "decision", "quality", "model", "cam",
    }  # fmt: skip
    assert body["image"] | {"sha256": None} == {"sha256": None, "width": 600, "height": 450, "format": "jpeg"}
    assert set(body["diagnoses"]) == set(card.leaves)
    assert body["model"] == {
        "name": "melanoma", "version": card.version, "precision": engine.served(card), "runtime": "openvino",
        "preprocessing": card.preprocessing,
    }  # fmt: skip
    assert body["cam"]["shape"] == [10, 10]
    decision = body["decision"]
    assert decision["threshold"] == card.operating_points[decision["operating_point"]].threshold
    assert decision["refer"] == (body["probabilities"]["melanoma"] >= decision["threshold"])

    again = stack.predict(data, api_key)
    assert (again.status, again.body["id"]) == (200, body["id"])
    one = stack.request("GET", f"/v1/predictions/{body['id']}", Authorization=f"Bearer {api_key}")
    assert one.body["probabilities"] == body["probabilities"]
    other = stack.create_api_key("other")
    keyed = stack.predict(sample.jpeg(902), other, Idempotency_Key="visit-7")
    assert keyed.status == 201
    clash = stack.predict(sample.jpeg(903), other, Idempotency_Key="visit-7")
    assert (clash.status, clash.body["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"a text file\n", 415, "unsupported_media_type"),
        (sample.jpeg(1)[:9000], 422, "image_undecodable"),
        (png_bomb(40_000), 413, "image_too_large"),
        (b"", 422, "image_empty"),
    ],
    ids=["text", "truncated", "bomb", "empty"],
)
def test_bad_input_gets_its_status_and_the_server_goes_on(
    stack: Stack, api_key: str, data: bytes, status: int, code: str
) -> None:
    answer = stack.predict(data, api_key)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert stack.predict(sample.jpeg(904), api_key).status in (200, 201)


def test_dicom_and_png_are_scored_like_the_pixels_they_hold(stack: Stack, api_key: str) -> None:
    pixels = sample.draw(905)
    png = stack.predict(encode(pixels, "PNG"), api_key, Content_Type="image/png")
    scan = stack.predict(dicom(pixels), api_key, Content_Type="application/dicom")
    assert (png.status, scan.status) == (201, 201)
    assert scan.body["image"]["format"] == "dicom"
    assert scan.body["probabilities"] == pytest.approx(png.body["probabilities"], abs=1e-5)


def test_a_bad_image_names_its_place_and_never_disturbs_requests_beside_it(stack: Stack) -> None:
    good, bad = [sample.jpeg(seed) for seed in range(4)], sample.jpeg(2)[:5000]
    client = TritonClient([stack.grpc])
    expected = client.infer(good, ["probabilities"])["probabilities"]

    def send(index: int) -> np.ndarray | str:
        mine = TritonClient([stack.grpc])
        try:
            return mine.infer([*good[:2], bad, good[3]] if index % 3 == 0 else good, ["probabilities"])["probabilities"]
        except ImageUndecodable as error:
            return error.detail
        finally:
            mine.close()

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(send, range(12)))
    for index, outcome in enumerate(outcomes):
        if index % 3 == 0:
            assert isinstance(outcome, str)
        else:
            assert np.abs(outcome - expected).max() < 1e-5
    raw = triton.InferInput("image", [2, 1], "BYTES")
    raw.set_data_from_numpy(np.array([good[0], bad], object).reshape(2, 1))
    with pytest.raises(InferenceServerException) as caught:
        triton.InferenceServerClient(stack.grpc).infer("melanoma", [raw])
    assert "image 1:" in caught.value.message()
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_answers_never_change_owner_under_concurrency(stack: Stack, api_key: str) -> None:
    images = [sample.jpeg(1000 + seed) for seed in range(24)]
    client = TritonClient([stack.grpc])
    expected = np.concatenate([client.infer([image], ["probabilities"])["probabilities"] for image in images])
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda image: stack.predict(image, api_key), images))
    for answer, row in zip(answers, expected, strict=True):
        assert answer.status == 201
        assert list(answer.body["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-4)


def test_predict_reports_refused_images_in_a_second_file(stack: Stack, samples: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((samples / "sample-000.jpg").read_bytes())
    (folder / "b.jpg").write_bytes(b"not an image")
    (folder / "c.png").write_bytes(encode(corners(300, 400), "PNG"))
    done = stack.run("predict", str(folder), "--csv", str(out))
    assert done.returncode == 1
    assert [row["filename"] for row in csv.DictReader(out.open())] == ["a.jpg", "c.png"]
    errors = list(csv.reader((tmp_path / "out.errors.csv").open()))
    assert errors[0] == ["filename", "code", "detail"]
    assert errors[1][:2] == ["b.jpg", "unsupported_media_type"]


def test_predict_killed_and_resumed_has_every_row_once_in_order(stack: Stack, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for seed in range(60):
        (folder / f"{seed:03d}.jpg").write_bytes(sample.jpeg(seed))
    process = subprocess.Popen(
        [DERMSERVE, "predict", str(folder), "--csv", str(out)], env=stack.environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows_before = out.read_bytes().count(b"\n") - 1
    assert 0 < rows_before < 60, "the kill came in the middle"
    with out.open("ab") as file:
        file.write(b"057.jpg,0.1")  # what a torn write leaves
    done = stack.run("predict", str(folder), "--csv", str(out), "--resume")
    assert done.returncode == 0, done.stderr
    assert [row["filename"] for row in csv.DictReader(out.open())] == [f"{seed:03d}.jpg" for seed in range(60)]


def test_predict_says_so_when_no_server_answers(tmp_path: Path, samples: Path) -> None:
    done = subprocess.run(
        [DERMSERVE, "predict", str(samples), "--csv", str(tmp_path / "o.csv"), "--url", "127.0.0.1:9"],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 3
    assert "No Triton answers at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_listens_beyond_loopback_and_management_is_closed(stack: Stack) -> None:
    listening = [
        connection
        for process in stack.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    # Triton binds its IPv4 address through an IPv6 socket, which then shows in mapped form.
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}
    client = triton.InferenceServerClient(stack.grpc)
    for call in (client.get_model_repository_index, client.get_system_shared_memory_status, client.get_trace_settings):
        with pytest.raises(InferenceServerException, match="restricted"):
            call()


def test_image_bytes_never_rest_on_the_disk(stack: Stack, api_key: str) -> None:
    data = encode(np.random.default_rng(5).integers(0, 256, (1500, 1500, 3), dtype=np.uint8))
    assert len(data) > 2_000_000
    assert stack.predict(data, api_key).status == 201
    marker = data[1_000_000:1_000_064]
    for folder in (stack.state_dir, Path("/dev/shm")):
        for file in folder.rglob("*"):
            if file.is_file() and folder == stack.state_dir:
                assert marker not in file.read_bytes(), file
