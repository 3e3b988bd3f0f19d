"""A real `dermserve train` that is killed with SIGKILL in the middle of an epoch, and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from training.commands import train
from training.loop import STATE

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


def kill_within_epoch(process: subprocess.Popen[bytes], out: Path, *, stage: int) -> dict[str, Any]:
    """SIGKILL the process when its checkpoint lies within an epoch of `stage`; returns the progress stored there.

    It is stopped for a second, certain look, for meanwhile it may have run on to somewhere else.
    """

    def within() -> dict[str, Any] | None:
        progress: dict[str, Any] = torch.load(out / STATE, weights_only=True)["progress"]
        return progress if progress["stage"] == stage and 2 < progress["batch"] < EPOCH else None

    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
        if (out / STATE).exists() and within():
            process.send_signal(signal.SIGSTOP)
            if progress := within():
                process.kill()
                process.wait()
                return progress
            process.send_signal(signal.SIGCONT)
    raise AssertionError("no checkpoint within an epoch")


def without_clock(out: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    """State, card and final weights of a run without what a clock wrote into them."""
    state = torch.load(out / STATE, weights_only=True)
    state["progress"].pop("seconds")
    for entry in state["progress"]["history"]:
        entry.pop("minutes")
    card = json.loads((out / "card.json").read_text())
    return state, card, torch.load(out / "final.pt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_of_its_second_stage_ends_like_an_uninterrupted_one(
    isic: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen([*COMMAND, "--data", str(isic), "--out", str(killed), *FRESH])
    try:
        progress = kill_within_epoch(process, killed, stage=1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "final.pt").exists()
    resume = [*COMMAND, "--data", str(isic), "--out", str(killed), "--resume"]
    done = subprocess.run(resume, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Going on at step {progress['step']}" in done.stderr
    arguments = ["--data", str(isic), "--out", str(whole), *FRESH]
    assert CliRunner().invoke(train, arguments, catch_exceptions=False).exit_code == 0
    (state, card, weights), (other_state, other_card, other_weights) = without_clock(whole), without_clock(killed)
    assert state["progress"]["step"] == 3 * EPOCH
    curve, other_curve = state["progress"]["history"], other_state["progress"]["history"]
    assert [entry["stage"] for entry in curve] == [0, 1, 1]
    assert curve == other_curve  # losses and ROC-AUC to the last bit
    for name, tensor in weights.items():
        assert torch.equal(tensor, other_weights[name]), name
    assert card["metrics"] == other_card["metrics"]
    assert card["operating_points"] == other_card["operating_points"]
    assert card["temperature"] == other_card["temperature"]
