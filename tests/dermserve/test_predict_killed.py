"""`dermserve predict` against a real Triton, killed as a process: every row once, in order, with its own file's figures."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import noop
from dermserve.model_card import ModelCard
from dermserve.settings import REPOSITORY_ROOT, Settings
from tests.deploy.embedded import Embedded, running

COUNT = 10_000
KILLS = 10
# In the model's place: the image's colour, read from its palette, so that each answer tells which file it belongs to.
COLOURS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        data = bytes(pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[0, 0])
        place = data.index(b"PLTE") + 4
        red, green, blue = (value / 255 for value in data[place:place + 3])
        known = {
            "probabilities": [[red, green, blue, (red + green + blue) / 3]],
            "ood": [[50.0]], "diagnoses": [[0.1] * 9], "quality": [[0.0, 0.999, 0.0, 0.0]], "region": [[0.0, 0.0, 1.0, 1.0]],
        }
        outputs = [pb_utils.Tensor(name, np.array(values, np.float32)) for name, values in known.items()]
        return pb_utils.InferenceResponse([one for one in outputs if one.name() in request.requested_output_names()])
"""


def colour(number: int) -> tuple[int, int, int]:
    return 64 + number % 150, 64 + number // 150 % 150, 200


def png(number: int) -> bytes:
    """32×32 pixels of one colour, written by hand: ten thousand of them in no time."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 32, 32, 8, 3, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        (b"PLTE", bytes(colour(number))),
        (b"IDAT", zlib.compress(bytes(33 * 32))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def expected(number: int) -> list[float]:
    red, green, blue = (value / 255 for value in colour(number))
    return [red, green, blue, (red + green + blue) / 3]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real Triton that decodes as ever and has no network."""
    folder = tmp_path_factory.mktemp("colours")
    models = noop.copy(Settings().model_repository, folder / "models")
    (models / "melanoma/1/model.py").write_text(COLOURS)
    (folder / "state").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DERMSERVE_MODEL_REPOSITORY", str(models))
        with running(folder / "state") as server:
            yield server


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05d}.png").write_bytes(png(number))
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dermserve", "predict", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*arguments: object) -> tuple[int, str]:
    run = start(*arguments)
    said = run.communicate(timeout=120)[0]
    return run.returncode, said


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(rows: int, out: Path, *arguments: object) -> bool:
    """Start a run and kill it once the table has so many rows; False where it came to its end before."""
    run = start(*arguments)
    try:
        while lines(out) <= rows:
            if run.poll() is not None:
                return False
            time.sleep(0.002)
        run.kill()
        return run.wait() == -signal.SIGKILL
    finally:
        run.kill()
        run.communicate()


def own_figures(rows: list[list[str]]) -> None:
    for name, *cells in rows:
        assert [float(cell) for cell in cells] == pytest.approx(expected(int(name[:5])), abs=2e-6), name


@pytest.mark.slow
def test_ten_thousand_files_killed_ten_times(triton: Embedded, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", COUNT), tmp_path / "out.csv"
    rng = random.Random(7)
    call = (folder, "--csv", out, "--url", triton.grpc)
    moments = sorted(rng.sample(range(COUNT - 1000), KILLS - 2))
    # Before the first row, and a second time at one place: a run that takes up and has done nothing yet.
    killed = [kill_at(-1, out, *call)]
    for rows in [*moments, moments[-1] - 1]:
        killed.append(kill_at(rows, out, *call, "--resume"))
        harm = rng.choice(("none", "torn", "cut"))
        if harm == "torn":
            with out.open("ab") as file:
                file.write(b"05000.png,0.1")
        elif harm == "cut":  # what a power cut leaves of a file that was never synchronised
            os.truncate(out, rng.randrange(lines(out) * 10))
    assert killed == [True] * KILLS
    code, said = finish(*call, "--resume")
    assert code == 0, said
    assert f"{COUNT} rows in {out}" in said
    rows = table(out)
    assert [row[0] for row in rows] == [f"{number:05d}.png" for number in range(COUNT)]
    own_figures(rows)
    whole = out.read_bytes()
    code, said = finish(*call, "--resume")
    assert (code, out.read_bytes()) == (0, whole)
    assert f"{COUNT} of {COUNT} images are done already." in said


def test_json_lines_hold_all_that_triton_and_the_card_tell(triton: Embedded, tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out.jsonl"
    code, said = finish(folder, "--jsonl", out, "--url", triton.grpc)
    assert code == 0, said
    assert f"3 rows in {out}, 3 of them abstained on, see {tmp_path / 'out.abstained.csv'}" in said
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["filename"] for line in told] == [f"{number:05d}.png" for number in range(3)]
    card = ModelCard.read(Settings().model_repository)
    for number, line in enumerate(told):
        assert list(line["probabilities"].values()) == pytest.approx(expected(number), abs=1e-6)
        digest = hashlib.sha256(png(number)).hexdigest()
        assert line["image"] == {"sha256": digest, "width": 32, "height": 32, "format": "png"}
        assert line["diagnoses"] == dict.fromkeys(card.leaves, 0.1)
        assert line["decision"] == {
            "operating_point": "sensitivity_95", "threshold": card.operating_point("sensitivity_95").threshold, "refer": True,
        }  # fmt: skip
        assert line["quality"] == {"ood": 50.0, "flags": ["hairy"], "abstained": True}
        assert line["model"] == {"name": "melanoma", "precision": triton_precision(triton), "runtime": "openvino"}
    code, said = finish(folder, "--jsonl", out, "--csv", tmp_path / "out.csv", "--url", triton.grpc)
    assert code == 0, said
    assert [row[0] for row in table(tmp_path / "out.csv")] == [line["filename"] for line in told]


def triton_precision(triton: Embedded) -> str:
    return triton.client().runtime().precision
