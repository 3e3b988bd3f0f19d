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
from dermserve.model_card import SeenImages
from training import ablation, ablation_report, datasets, splits
from training.artifact_commands import artifacts
from training.artifacts import KINDS, draw
from training.model import create_model, save_checkpoint


def finished(folder: Path, seen: SeenImages | None, **config: object) -> Path:
    """A run folder with tiny weights."""
    folder.mkdir(parents=True)
    metadata = {
        "architecture": "test_efficientnet",
        "leaves": list(LEAVES),
        "temperature": 1.5,
        "config": {"stages": [{"resolution": 32}]} | config,
    }
    save_checkpoint(folder / "final.pt", create_model(architecture="test_efficientnet"), metadata)
    card = {
        "operating_points": {"sensitivity_95": {"threshold": 0.11}},
        "seen": seen and seen.model_dump(),
        "training": {"images": {"train": 12}, "epochs": 1.5},
    }
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def divided(data: Path, seed: int) -> SeenImages:
    parts = splits.split(datasets.read(data), seed=seed, fraction=0.4)
    return SeenImages.of((record.name for record in parts.train), (record.name for record in parts.validation))


@pytest.fixture(scope="module")
def run(isic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "tiny", divided(isic, 0), artifacts=0.4)


def test_only_runs_that_differ_in_nothing_else_are_a_pair(isic: Path, tmp_path: Path) -> None:
    seen, other = divided(isic, 0), divided(isic, 1)
    drawn = ablation.load(finished(tmp_path / "drawn", seen, artifacts=0.4, lr=1e-3, bootstrap=10))
    plain = ablation.load(finished(tmp_path / "plain", seen, artifacts=0.0, lr=1e-3, bootstrap=20))
    assert drawn.trained == plain.trained
    others = [
        ablation.load(finished(tmp_path / name, images, artifacts=0.0, lr=rate))
        for name, images, rate in (("images", other, 1e-3), ("rate", seen, 1e-4))
    ]
    assert all(run.trained != drawn.trained for run in others)
    runs = [drawn, plain, *others]
    found = ablation.validation(isic, [drawn, plain], 16, 0)
    pairs = ablation.measure(runs, found, bootstrap=20).pairs
    assert [(pair.drawn, pair.plain) for pair in pairs] == [("drawn", "plain")]


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
    """A stand-in for removal that undoes nothing but is seen: it turns every image black. One batch: others round otherwise."""
    weights = ablation.load(run)
    found = ablation.validation(isic, [weights], 16, 0)
    monkeypatch.setattr(removal, "remove", np.zeros_like)
    measured = ablation.measure([weights], found, bootstrap=20)
    rows = measured.rows
    assert [(row.kind, row.removed) for row in rows] == [(k, r) for k in ("none", *KINDS) for r in (False, True)]
    for row in rows:
        if row.removed:
            assert row.auc == 0.5, "all images alike"
        if row.removed or row.kind == "none":
            assert (row.drift_median, row.drift_95, row.auc_change, row.changed) == (0, 0, 0, 0)
    assert any(row.drift_95 > 0 for row in rows if not row.removed)
    assert all(row.drift_median <= row.drift_95 for row in rows)
    auc = {(row.kind, row.removed): row.auc for row in rows}
    gains = {one.kind: one for one in measured.removal}
    assert list(gains) == ["none", *KINDS, "mean of all"]
    for kind in ("none", *KINDS):
        assert gains[kind].auc_change == pytest.approx(auc[kind, True] - auc[kind, False])
        assert gains[kind].auc_change_low <= gains[kind].auc_change <= gains[kind].auc_change_high
    assert gains["mean of all"].auc_change == pytest.approx(np.mean([gains[kind].auc_change for kind in KINDS]))


def weights(name: str, drawn: float = 0.3, removes: bool = False) -> ablation.Weights:
    network = create_model(architecture="test_efficientnet")
    return ablation.Weights(name, network, 1.0, 0.1, SeenImages.of([], []), drawn, removes)


def rows(name: str, **drift: float) -> list[ablation.Row]:
    """Each kind's median drift where it was not removed; with removal nothing moves."""
    return [
        ablation.Row(name, removed, kind, 0.8, 0, 0, 0, median * (not removed), 2 * median * (not removed), 0)
        for kind, median in drift.items()
        for removed in (False, True)
    ]


def removals(name: str, clean: tuple[float, float, float], drawn: tuple[float, float, float]) -> list[ablation.Removal]:
    return [ablation.Removal(name, "none", *clean), ablation.Removal(name, "mean of all", *drawn)]


@pytest.mark.parametrize(
    ("clean", "drawn", "default"),
    [
        ((0.01, 0.001, 0.02), (0.01, 0.001, 0.02), "on"),
        ((0.01, -0.001, 0.02), (0.01, 0.001, 0.02), "off"),
        ((0.01, 0.001, 0.02), (0.01, -0.001, 0.02), "off"),
        ((0.01, 0.001, 0.02), (0.004, 0.001, 0.02), "off"),
    ],
    ids=["gains", "clean images may lose", "drawn images may lose", "too little"],
)
def test_removal_is_a_default_only_if_it_surely_gains_for_every_run(
    clean: tuple[float, float, float], drawn: tuple[float, float, float], default: str
) -> None:
    gains = ((0.02, 0.01, 0.03), (0.02, 0.01, 0.03))
    measured = ablation.Ablation(
        rows("a", ink=0.01) + rows("b", ink=0.01), removals("a", *gains) + removals("b", clean, drawn), []
    )
    runs = [weights("a"), weights("b")]
    assert f"`remove_artifacts`: {default}." in ablation_report.defaults(measured, runs)
    assert "`artifacts` (drawing them in training): not decided" in ablation_report.defaults(measured, runs)
    said = " ".join(ablation_report.conclusions(measured, runs))
    assert f"{clean[0]:+.4f} ({clean[1]:+.4f} … {clean[2]:+.4f})" in said
    assert said.count("default is met") == 1 + (default == "on")


@pytest.mark.parametrize(
    ("drifts", "high", "default"),
    [((0.01, 0.02), 0.001, "on"), ((0.02, 0.01), 0.001, "off"), ((0.01, 0.02), -0.001, "off")],
    ids=["drifts less", "drifts more", "drifts less and ranks worse"],
)
def test_drawing_artefacts_is_a_default_if_it_helps_and_costs_nothing(
    drifts: tuple[float, float], high: float, default: str
) -> None:
    gains = removals("a", (0, 0, 0), (0, 0, 0))
    measured = ablation.Ablation(rows("a", ink=0.01), gains, [ablation.Pair("a", "b", *drifts, -0.01, -0.02, high)])
    assert f"in training): {default}." in ablation_report.defaults(measured, [weights("a")])


def test_it_is_said_how_far_each_artefact_moves_the_weights_as_they_were_trained() -> None:
    found = rows("a", ink=0.01, hair=0.02, corners=0.06) + rows("b", ink=0.5)
    gains = removals("a", (0, 0, 0), (0, 0, 0)) + removals("b", (0, 0, 0), (0, 0, 0))
    said = ablation_report.conclusions(ablation.Ablation(found, gains, []), [weights("a"), weights("b", removes=True)])
    assert "`a`, scored without removal" in said[0]
    assert "drawing ink or hair moves the melanoma probability by less than 0.05 in the median" in said[0]
    assert "the median change reaches 0.05 with dark corners (0.060)" in said[0]
    assert "ink (0.020), hair (0.040) and dark corners (0.120)" in said[0]
    assert "`b`, scored with removal as it was trained: drawing ink moves" in said[1]


def test_the_command_writes_page_plot_and_figures(isic: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs/artifacts.md"
    out.parent.mkdir()
    result = CliRunner().invoke(artifacts, ["--data", str(isic), "--run", str(run), "--count", "20", "--out", str(out)])
    assert result.exit_code == 0, result.output
    page, figures = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    assert len(figures["rows"]) == 2 * (1 + len(KINDS))
    ink = next(row for row in figures["rows"] if row["kind"] == "ink" and not row["removed"])
    assert f"| tiny | off | ink | {ink['auc']:.4f} |" in page
    assert "| `tiny` | 12 images × 1.5 at 32 px | 40% of the images | no |" in page
    for sentence in ("`remove_artifacts`: off", "`artifacts` (drawing them in training): not decided"):
        assert sentence in page
        assert sentence in result.output
    for name in ("artifacts.png", "artifacts-drawn.png"):
        assert (tmp_path / "docs/images" / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no checkpoint"):
        ablation.load(tmp_path)


def test_no_image_is_drawn_on_that_a_run_was_trained_on(isic: Path, run: Path, tmp_path: Path) -> None:
    """Runs of other seeds were divided otherwise; what the folder would be divided into now has no say."""
    runs = [ablation.load(finished(tmp_path / f"seed{seed}", divided(isic, seed))) for seed in (1, 2)]
    for some in (runs[:1], runs):
        names = {path.stem for path in ablation.validation(isic, some, 200, 0).paths}
        assert names
        for weights in some:
            assert not weights.seen.trained_on(names)
            assert set(weights.seen.fixed_on(names)) == names
    found = datasets.read(isic)
    swapped = SeenImages(train=runs[0].seen.validation, validation=runs[0].seen.train)
    with pytest.raises(StartupError, match="no validation image that seed1 and swapped have in common"):
        ablation.validation(isic, [runs[0], ablation.load(finished(tmp_path / "swapped", swapped))], 200, 0)
    everything = [record.name for record in found.records]
    with pytest.raises(StartupError, match="no validation image"):
        ablation.validation(
            isic, [ablation.load(finished(tmp_path / "both", SeenImages.of(everything, everything)))], 9, 0
        )


def test_runs_that_cannot_be_told_apart_or_judged_are_refused(isic: Path, run: Path, tmp_path: Path) -> None:
    other = finished(tmp_path / "elsewhere/tiny", divided(isic, 0))
    result = CliRunner().invoke(artifacts, ["--data", str(isic), "--run", str(run), "--run", f"{other}/"])
    assert isinstance(result.exception, StartupError)
    assert "Several runs are called tiny" in str(result.exception)
    with pytest.raises(StartupError, match=r"unlisted/card.json keeps no list of the images"):
        ablation.load(finished(tmp_path / "unlisted", None))


@pytest.mark.parametrize(
    ("config", "chance"),
    [({"artifacts": 0.3, "augmentation": "full"}, 0.3), ({"artifacts": 0.3, "augmentation": "light"}, 0), ({}, 0)],
    ids=["full", "light draws none", "from before artefacts were drawn"],
)
def test_only_artefacts_that_were_drawn_are_counted(
    config: dict[str, object], chance: float, isic: Path, tmp_path: Path
) -> None:
    assert ablation.load(finished(tmp_path / "run", divided(isic, 0), **config)).artifacts == chance
