"""The page docs/model-card.md with its plots, from the same figures that stand in the card."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dermserve.errors import StartupError
from dermserve.model_card import ModelCard
from training.report import page as report_page
from training.report import plots
from training.report.examine import Found, Scored

IMAGES = Path("images/model-card")
LEARNING = "learning.png"


def require_plots() -> None:
    """Refuse at once, not after minutes of scoring, where the page cannot be whole.

    Raises:
        StartupError: matplotlib or isic-challenge-scoring is not installed.
    """
    missing = [name for name in ("matplotlib", "isic_challenge_scoring") if find_spec(name) is None]
    if missing:
        raise StartupError(f"The model card needs {' and '.join(missing)}: install the extra `training`.")


def write_page(card: ModelCard, found: dict[str, Found], images: dict[str, Scored], page: Path) -> list[Path]:
    """Write the page and its plots, which replace all earlier ones; returns the files.

    Args:
        card: with the figures of `found` in it.
        found: by data set; sources of a set have no plots of their own.
        images: the scored images of each data set.
        page: the Markdown file; the plots go below its folder.
    """
    folder = page.parent / IMAGES
    drawn = {name: plots.draw_all(scored, found[name], folder, f"{name}-") for name, scored in images.items()}
    learning = plots.draw_learning_curve(card.training.get("learning_curve", []), folder / LEARNING)
    written = [path for kinds in drawn.values() for path in kinds.values()] + ([learning] if learning else [])
    for path in folder.glob("*.png"):
        if path not in written:
            path.unlink()
    page.write_text(text(card, page), encoding="utf-8")
    return [page, *written]


def text(card: ModelCard, page: Path) -> str:
    """The page of a card, with links to those plots that lie where `write_page` puts them."""

    def link(name: str) -> str | None:
        return str(IMAGES / name) if (page.parent / IMAGES / name).exists() else None

    links = {
        data: {kind: path for kind in plots.KINDS if (path := link(f"{data}-{kind}.png"))}
        for data in card.metrics
        if "/" not in data
    }
    return report_page.page(card, links, link(LEARNING))
