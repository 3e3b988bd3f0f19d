"""Mutants in a process of their own: it lives, answers in time, and stays below its bound of memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dermserve import errors, image
from dermserve.errors import ImageError
from tests.dermserve import mutations

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutants_are_judged_or_refused(count: int) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.dermserve.mutations", str(count)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["seconds"] < mutations.SECONDS, told["slowest"]
    assert told["peak"] < mutations.MEMORY
    assert set(told["outcomes"]) - {"accepted"} <= {
        code for code, one in errors.BY_CODE.items() if issubclass(one, ImageError)
    }
    assert told["outcomes"]["accepted"] > count / 10, "else nothing comes past the first check"
    assert told["outcomes"]["image_undecodable"] > count / 10


def test_mutants_are_the_same_for_the_same_seed() -> None:
    once = list(mutations.mutants(30))
    assert once == list(mutations.mutants(30))
    assert once != list(mutations.mutants(30, seed=7))


@pytest.mark.parametrize("name", sorted(mutations.objects()))
def test_the_objects_are_whole_before_they_are_damaged(name: str) -> None:
    for one in mutations.dicom.frames(mutations.objects()[name]):
        assert image.prepare(one).pixels.shape == (300, 300, 3)


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.dcm")), ids=lambda file: file.stem)
def test_what_once_was_too_much_is_refused_at_once(file: Path) -> None:
    program = (
        "import sys, time\nfrom dermserve import dicom, image\nfrom dermserve.errors import ImageError\n"
        "data = sys.stdin.buffer.read()\nstart = time.process_time()\n"
        "for way in (image.prepare, lambda data: [image.prepare(one) for one in dicom.frames(data)]):\n"
        "    try: way(data)\n    except ImageError as error: print(error.code)\n"
        "assert time.process_time() - start < 2"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=file.read_bytes(),
        cwd=ROOT,
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mutations.MEMORY, mutations.MEMORY)),
    )
    assert len(done.stdout.split()) == 2, "refused both whole and frame by frame"


def test_the_corpus_is_what_the_generator_makes() -> None:
    assert sorted(mutations.interesting()) == sorted(file.stem for file in CORPUS.glob("*.dcm"))
