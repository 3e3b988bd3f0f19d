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


def command(data: Path, out: Path, *more: str) -> list[str]:
    shell = [sys.executable, "-c", "from dermserve.cli import main; main()", "train"]
    return [*shell, "--data", str(data), "--out", str(out), *more]


def fresh(data: Path, out: Path) -> subprocess.Popen[bytes]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(command(data, out, "--preset", "quick", *settings))


def kill_within_epoch(process: subprocess.Popen[bytes], out: Path, *, stage: int) -> dict[str, Any]:
    """Stop the process again and again until its checkpoint lies within an epoch of `stage`, then SIGKILL it.

    While it is stopped it cannot run on to somewhere else. Returns the progress in the checkpoint.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.03)
        if not (out / STATE).exists():
            continue
        process.send_signal(signal.SIGSTOP)
        progress: dict[str, Any] = torch.load(out / STATE, weights_only=True)["progress"]
        if progress["stage"] == stage and 2 < progress["batch"] < EPOCH:
            process.kill()
            process.wait()
            return progress
        process.send_signal(signal.SIGCONT)
    process.kill()
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
    whole, killed = tmp_path / "one/whole", tmp_path / "two/killed"  # each with its own cache
    first = fresh(isic, whole)
    second = fresh(isic, killed)
    try:
        progress = kill_within_epoch(second, killed, stage=1)
        assert second.returncode == -signal.SIGKILL
        assert not (killed / "final.pt").exists()
        done = subprocess.run(command(isic, killed, "--resume"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"Going on at step {progress['step']}" in done.stderr
        assert first.wait(120) == 0
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
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
