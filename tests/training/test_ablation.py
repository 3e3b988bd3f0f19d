"""The ablation on tiny weights and drawn images; what real weights do is in docs/artifacts.md."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dermserve import artifacts as removal
from dermserve import sample
from dermserve.errors import StartupError
from dermserve.labels import LEAVES
from training import ablation, ablation_report
from training.artifact_commands import artifacts
from training.artifacts import KINDS, draw
from training.model import create_model, save_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    metadata = {
        "architecture": "test_efficientnet",
        "leaves": list(LEAVES),
        "temperature": 1.5,
        "config": {"artifacts": 0.4},
    }
    save_checkpoint(folder / "final.pt", create_model(architecture="test_efficientnet"), metadata)
    (folder / "card.json").write_text(json.dumps({"operating_points": {"sensitivity_95": {"threshold": 0.11}}}))
    return folder


def test_a_drawn_artefact_changes_some_of_the_image_and_is_the_same_for_the_same_seed() -> None:
    lesion = sample.draw(3)
    for kind in KINDS:
        once, again, other = (draw(kind, lesion, np.random.default_rng(seed)) for seed in (1, 1, 2))
        changed = (once != lesion).any(axis=2).mean()
        assert np.array_equal(once, again), kind
        assert not np.array_equal(once, other), kind
        assert 0.002 < changed < 0.9, (kind, changed)
        assert once.shape == lesion.shape
        assert once.dtype == np.uint8


def test_the_rows_hold_what_the_scores_say(isic: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for removal that undoes nothing but is seen: it turns every image black."""
    found = ablation.validation(isic, 20, 0)
    monkeypatch.setattr(removal, "remove", np.zeros_like)
    rows = ablation.measure([ablation.load(run)], found, bootstrap=20)
    assert [(row.kind, row.removed) for row in rows] == [(k, r) for k in ("none", *KINDS) for r in (False, True)]
    for row in rows:
        if row.removed:
            assert row.auc == 0.5, "all images alike"
        if row.removed or row.kind == "none":
            assert (row.drift_median, row.drift_95, row.auc_change, row.changed) == (0, 0, 0, 0)
    assert any(row.drift_95 > 0 for row in rows if not row.removed)
    assert all(row.drift_median <= row.drift_95 for row in rows)


def test_removal_is_recommended_only_by_the_rule() -> None:
    def row(kind: str, removed: bool, auc: float) -> ablation.Row:
        return ablation.Row("w", removed, kind, auc, 0, 0, 0, 0.04 if kind != "none" else 0, 0.1, 0)

    weights = [ablation.Weights("w", create_model(architecture="test_efficientnet"), 1.0, 0.1, 0.3)]
    plain = [row("none", False, 0.9), row("ink", False, 0.8)]
    better = ablation_report.conclusions([*plain, row("none", True, 0.9), row("ink", True, 0.81)], weights)
    costly = ablation_report.conclusions([*plain, row("none", True, 0.899), row("ink", True, 0.85)], weights)
    idle = ablation_report.conclusions([*plain, row("none", True, 0.9), row("ink", True, 0.804)], weights)
    assert "is met" in better[1]
    assert "is not met" in costly[1]
    assert "is not met" in idle[1]
    assert "within the bound" in better[0]


def test_the_command_writes_page_plot_and_figures(isic: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs/artifacts.md"
    out.parent.mkdir()
    result = CliRunner().invoke(artifacts, ["--data", str(isic), "--run", str(run), "--count", "20", "--out", str(out)])
    assert result.exit_code == 0, result.output
    page, figures = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    assert len(figures) == 2 * (1 + len(KINDS))
    ink = next(row for row in figures if row["kind"] == "ink" and not row["removed"])
    assert f"| tiny | off | ink | {ink['auc']:.4f} |" in page
    assert "40%" in page
    for name in ("artifacts.png", "artifacts-drawn.png"):
        assert (tmp_path / "docs/images" / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no checkpoint"):
        ablation.load(tmp_path)
