"""A real `dermserve train` that is killed with SIGKILL in the middle of an epoch, and resumed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.loop import BEST, STATE
from training.schedule import Progress

STAGES = '[{"resolution": 32, "epochs": 1}, {"resolution": 48, "epochs": 2, "frozen_blocks": 1}]'
SETTINGS = (
    f"stages={STAGES}",
    "architecture=test_efficientnet",
    "batch_size=8",
    "threads=1",
    "bootstrap=20",
    "adapt_images=32",
    "ema_decay=0.9",
    "checkpoint_minutes=0",  # a checkpoint after every step
    "artifacts=0.5",
    "noise=0.3",
    "cutout=0.3",
    "mixup=0.2",
)
EPOCH = 13
"""Steps: 108 of the 116 images train, eight a step."""


FRESH = ("--preset", "quick", *(word for setting in SETTINGS for word in ("--set", setting)))
COMMAND = (sys.executable, "-c", "from dermserve.cli import main; main()", "train")


def started(data: Path, out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen([*COMMAND, "--data", str(data), "--out", str(out), *arguments], stderr=log)


def kill_when(process: subprocess.Popen[bytes], out: Path, wanted: Callable[[Progress], bool]) -> Progress:
    """SIGKILL the process when its last checkpoint is a wanted one; returns how far it had come.

    It is stopped for a second, certain look, for meanwhile it may have run on to somewhere else.
    """

    def stored() -> Progress:
        return Progress(**torch.load(out / STATE, weights_only=True)["progress"])

    try:
        while process.poll() is None:
            time.sleep(0.05)
            if (out / STATE).exists() and wanted(stored()):
                process.send_signal(signal.SIGSTOP)
                if wanted(progress := stored()):
                    return progress
                process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    raise AssertionError("the run ended before it could be killed: " + out.with_suffix(".log").read_text())


def within_second_stage(progress: Progress) -> bool:
    return progress.stage == 1 and 2 < progress.batch < EPOCH


def trained(progress: Progress) -> bool:
    """All stages are done; what is left is to finish, which depends on the weights alone."""
    return progress.stage == 2


def without_clock(out: Path) -> dict[str, Any]:
    """Everything a run goes on from, without what a clock wrote into it."""
    state: dict[str, Any] = torch.load(out / STATE, weights_only=True)
    state["progress"].pop("seconds")
    for entry in state["progress"]["history"]:
        entry.pop("minutes")
    return state


@pytest.mark.slow
@pytest.mark.timeout(900)  # three processes that import torch, where a training run may hold the machine
def test_a_run_killed_within_an_epoch_of_its_second_stage_ends_like_an_uninterrupted_one(
    isic: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = started(isic, killed, *FRESH)
    progress = kill_when(process, killed, within_second_stage)
    assert process.returncode == -signal.SIGKILL
    # A checkpoint was perhaps just being written; that the last whole one counts is seen in the equal ends below.
    (killed / f"{STATE}.partial").write_bytes(b"half of a checkpoint")
    resumed = kill_when(started(isic, killed, "--resume"), killed, trained)
    assert f"Going on at step {progress.step}\n" in killed.with_suffix(".log").read_text()
    assert kill_when(started(isic, whole, *FRESH), whole, trained).step == 3 * EPOCH == resumed.step > progress.step
    one, other = without_clock(whole), without_clock(killed)
    curve = one["progress"]["history"]
    assert [entry["stage"] for entry in curve] == [0, 1, 1]
    assert curve == other["progress"]["history"]  # losses and ROC-AUC to the last bit
    best, other_best = (torch.load(out / BEST, weights_only=True)["state_dict"] for out in (whole, killed))
    for first, second in ((one["model"], other["model"]), (one["averaged"], other["averaged"]), (best, other_best)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
