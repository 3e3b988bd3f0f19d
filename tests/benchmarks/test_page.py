"""`docs/performance.md` is what the results files say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import page, report
from dermserve.errors import StartupError
from dermserve.model_card import ModelCard
from dermserve.settings import REPOSITORY_ROOT, Settings


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return shutil.copytree(report.RESULTS, tmp_path / "results")


def card() -> ModelCard:
    return ModelCard.read(Settings().model_repository)


def test_committed_page_is_made_of_the_committed_results(results: Path, tmp_path: Path) -> None:
    page.write(results, card(), tmp_path / "page.md")
    committed = REPOSITORY_ROOT / "docs/performance.md"
    assert committed.read_text() == (tmp_path / "page.md").read_text(), "run `dermserve bench page`"


def test_figures_and_verdicts_follow_the_files(results: Path, tmp_path: Path) -> None:
    serve = json.loads((results / "serve.json").read_text())
    serve["rows"]["HTTP API, 16 senders"]["p50_ms"] = 123456.7
    serve["bounds"] = [{"what": "the share", "found": 0.8496, "bound": 0.85, "at": "least", "held": False}]
    (results / "serve.json").write_text(json.dumps(serve))
    page.write(results, card(), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| 123456.7 |" in text
    assert "- the share: 0.8496, bound ≥ 0.85: **not held**" in text


def test_benchmark_that_was_not_run(results: Path, tmp_path: Path) -> None:
    (results / "lane.json").unlink()
    with pytest.raises(StartupError, match="lane"):
        page.write(results, card(), tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
