"""The right answers, from dermserve's engine; and whether the network of the other servers gives the same."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.comparison import Job
from benchmarks.peers.process import environment, python
from benchmarks.peers.wire import Expected
from dermserve.engine import load
from dermserve.errors import StartupError
from dermserve.image import prepare

TOLERANCE = 1e-3
"""How far a probability may be from the right answer of the same precision."""
_LARGEST_DIFFERENCE = 1e-4
_CHECKED = 20
_PATIENCE_S = 600


def expected(repository: Path, files: Sequence[bytes], precision: str | None = None) -> tuple[Expected, str]:
    """The answers to all files in a precision, by default the one that is served here; and which one that is."""
    engine = load(repository, precision)
    answers = [engine.infer(prepare(file).pixels[None])["probabilities"][0].tolist() for file in files]
    return Expected(answers, TOLERANCE), engine.precision


def require_same(job: Job, choices: Sequence[str]) -> dict[str, Any]:
    """Let PyTorch answer 20 images without a server; returns the largest differences and the packages' versions.

    `job` holds the right answers in FP32, `choices` what will run inside the servers, as in `inside.py`.

    Raises:
        StartupError: the servers are not installed, or an answer differs: then nothing that is measured means anything.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="dermserve-answers-") as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(min(_CHECKED, len(job.files)))]
        for path, file in zip(paths, job.files, strict=False):
            path.write_bytes(file)
        for choice in choices:
            told = _run(choice, job.repository, paths)
            off = np.abs(np.array(told["answers"]) - np.array(job.expected.answers[: len(paths)])).max()
            if not off <= _LARGEST_DIFFERENCE:
                raise StartupError(
                    f"The weights in PyTorch ({choice}) answer otherwise than dermserve, by up to {off:.1g} on "
                    f"{len(paths)} images (allowed: {_LARGEST_DIFFERENCE:g}); nothing was measured."
                )
            found |= {"versions": told["versions"], f"largest_difference_{choice}": float(off)}
    return found


def _run(choice: str, repository: Path, paths: Sequence[Path]) -> dict[str, Any]:
    ended = subprocess.run(
        [python(), "-m", "benchmarks.peers.answers", *paths],
        env=environment(choice, repository), capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise StartupError(f"The weights do not run in PyTorch ({choice}): {ended.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer
