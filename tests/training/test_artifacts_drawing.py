import numpy as np
import pytest
import torch

from training import artifacts
from training.artifacts import KINDS, RandomArtifacts, draw

SKIN = np.full((300, 300, 3), (205, 165, 145), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 300), (48, 64), (225, 300)])
def test_a_drawn_artefact_changes_a_part_of_the_picture_and_not_its_shape(kind: str, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), (205, 165, 145), np.uint8)
    for seed in range(5):
        drawn = draw(kind, pixels, np.random.default_rng(seed))
        assert (drawn.shape, drawn.dtype) == (pixels.shape, np.uint8)
        changed = (np.abs(drawn.astype(int) - pixels) > 8).any(2).mean()
        # A wide picture may lie within the round view as a whole; prepared images are square.
        assert 0 < changed < 0.75 or (kind == "corners" and shape[0] != shape[1] and changed == 0), seed
    assert (pixels == (205, 165, 145)).all(), "the picture itself was drawn on"


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawing_follows_its_generator(kind: str) -> None:
    first, again, other = (draw(kind, SKIN, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["ink", "patch"])
def test_marks_leave_the_middle_to_the_lesion(kind: str) -> None:
    hidden = [
        (np.abs(draw(kind, SKIN, np.random.default_rng(seed)).astype(int) - SKIN) > 40)[120:180, 120:180].any(2).mean()
        for seed in range(40)
    ]
    assert np.mean(hidden) < 0.1


def test_dark_corners_are_dark_at_the_corners_and_nowhere_else() -> None:
    for seed in range(10):
        drawn = draw("corners", SKIN, np.random.default_rng(seed)).astype(int)
        corners = [drawn[y, x].mean() for y in (2, -3) for x in (2, -3)]
        assert np.median(corners) < 60
        assert (np.abs(drawn[130:170, 130:170] - SKIN[130:170, 130:170]) <= 2).all()


def test_a_size_means_the_same_share_of_a_picture_at_any_resolution() -> None:
    """Training draws at the working resolution, the ablation at 300 px: both must see artefacts of one size."""
    for kind in KINDS:
        shares = []
        for side in (128, 300):
            pixels = np.full((side, side, 3), 180, np.uint8)
            drawn = [draw(kind, pixels, np.random.default_rng(seed)) for seed in range(30)]
            shares.append(np.mean([np.abs(image.astype(int) - 180) > 15 for image in drawn]))
        assert shares[0] == pytest.approx(shares[1], rel=0.5, abs=0.01), kind


def test_every_kind_comes_up_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = dict.fromkeys(KINDS, 0)

    def note(kind: str, pixels: artifacts.Pixels, rng: np.random.Generator) -> artifacts.Pixels:
        seen[kind] += 1
        return pixels

    monkeypatch.setattr(artifacts, "draw", note)
    torch.manual_seed(0)
    transform, image = RandomArtifacts(0.4), torch.zeros(3, 8, 8, dtype=torch.uint8)
    for _ in range(1500):
        transform(image)
    # One artefact with chance 0.4, a second with 0.2, six kinds alike.
    assert sum(seen.values()) == pytest.approx(1500 * 0.6, rel=0.1)
    assert min(seen.values()) > 0.7 * sum(seen.values()) / len(KINDS)
