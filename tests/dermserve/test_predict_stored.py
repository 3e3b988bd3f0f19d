"""`dermserve predict` through the real HTTP API: what it was told is in the database, each image once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from dermserve.errors import Unauthenticated
from dermserve.sample import jpeg
from dermserve.settings import REPOSITORY_ROOT
from tests.dermserve import test_predict_killed as killed
from tests.dermserve.test_predict_api import images, rows, run
from tests.frontend.conftest import Server, cluster, execute, new_key, running, server, settings  # noqa: F401  fixtures


def test_the_real_api_stores_each_image_once_however_often_it_is_sent(server: Server, tmp_path: Path) -> None:  # noqa: F811
    folder, out, lines = tmp_path / "in", tmp_path / "out.csv", tmp_path / "out.jsonl"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(7000 + number))
    (folder / "bad.jpg").write_bytes(b"no image")
    key = new_key(server.settings)
    first = run(folder, out, server.url, "--jsonl", str(lines), key=key)
    assert first.exit_code == 1, first.output
    again = run(folder, tmp_path / "again.csv", server.url, key=key)
    assert again.exit_code == 1, again.output
    assert (tmp_path / "again.csv").read_text() == out.read_text()
    assert [row[0] for row in rows(out)] == [f"{number:02d}.jpg" for number in range(12)]
    assert rows(tmp_path / "out.errors.csv") == [
        ["bad.jpg", "unsupported_media_type", "The bytes are neither JPEG, PNG nor DICOM."]
    ]
    stored = {
        row["image_sha256"].hex(): row["probabilities"]
        for row in execute(server, "SELECT image_sha256, probabilities FROM predictions")
    }
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["filename"] for line in told] == [row[0] for row in rows(out)]
    for (name, *cells), line in zip(rows(out), told, strict=True):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert [float(cell) for cell in cells] == pytest.approx(stored[digest], abs=1e-6)
        assert line["image"]["sha256"] == digest
        assert {"id", "diagnoses", "decision", "quality", "model"} <= set(line)
        assert list(line["probabilities"].values()) == pytest.approx(stored[digest], abs=1e-6)
    count = execute(server, "SELECT count(*) FROM predictions WHERE image_sha256 = ANY($1)", [
        hashlib.sha256(jpeg(7000 + number)).digest() for number in range(12)
    ])  # fmt: skip
    assert count[0][0] == 12, "one row for each image"


def test_a_client_that_is_killed_loses_nothing_and_stores_nothing_twice(server: Server, tmp_path: Path) -> None:  # noqa: F811
    count, out = 300, tmp_path / "out.csv"
    folder = killed.images(tmp_path / "in", count)
    environment = {**os.environ, "DERMSERVE_API_KEY": new_key(server.settings)}
    command = killed.command(folder, "--csv", out, "--url", server.url, "--concurrency", 8, "--resume")
    server.stand_in.delay_s = 0.02
    for rows_before in (0, 60, 150):
        process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, env=environment, stderr=subprocess.DEVNULL)
        while killed.lines(out) <= rows_before + 1:
            assert process.poll() is None, "it is killed in the middle"
            time.sleep(0.005)
        process.kill()
        process.wait()
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digests = {f"{number:05d}.png": hashlib.sha256(killed.png(number)).digest() for number in range(count)}
    stored = execute(
        server,
        "SELECT image_sha256, probabilities FROM predictions WHERE image_sha256 = ANY($1)",
        list(digests.values()),
    )
    assert len(stored) == count, "one row for each image"
    known = {row["image_sha256"]: row["probabilities"] for row in stored}
    assert [row[0] for row in rows(out)] == list(digests)
    for name, *cells in rows(out):
        assert [float(cell) for cell in cells] == pytest.approx(known[digests[name]], abs=1e-6)


def test_a_key_that_is_unknown_ends_the_run_and_writes_nothing(server: Server, tmp_path: Path) -> None:  # noqa: F811
    folder = images(tmp_path / "in", 2)
    refused = run(folder, tmp_path / "out.csv", server.url, key="derm_wrong")
    assert isinstance(refused.exception, Unauthenticated)
    assert refused.exception.exit_status == 2
    assert "derm_wrong" not in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
