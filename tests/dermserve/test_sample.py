import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dermserve import image
from dermserve.errors import StartupError
from dermserve.sample import draw, jpeg, sample

SEEDS = range(8)


def test_a_seed_always_draws_the_same_image():
    first, second = draw(3), draw(3)

    assert first.shape == (450, 600, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert jpeg(3) == jpeg(3)


def test_different_seeds_draw_different_images():
    thumbnails = [np.asarray(Image.fromarray(draw(seed)).resize((12, 9)), float) for seed in SEEDS]

    for number, one in enumerate(thumbnails):
        for other in thumbnails[number + 1 :]:
            assert np.abs(one - other).mean() > 4


@pytest.mark.parametrize("seed", SEEDS)
def test_every_image_is_a_lesion_on_skin_that_the_server_accepts(seed):
    data = jpeg(seed)
    pixels, _ = image.prepare(data)
    opened = Image.open(io.BytesIO(data))

    assert opened.format == "JPEG"
    assert opened.size == (600, 450)
    assert len(data) < 200_000
    red, _, blue = pixels.reshape(-1, 3).mean(axis=0)
    assert red > blue, "skin is warmer than it is blue"
    assert pixels.astype(float).mean(axis=2).std() > 8, "a lesion stands out from its skin"


def test_the_command_writes_numbered_images_that_continue_a_run(tmp_path):
    whole = CliRunner().invoke(sample, [str(tmp_path / "whole"), "--count", "3", "--seed", "5"])
    rest = CliRunner().invoke(sample, [str(tmp_path / "rest"), "--count", "1", "--seed", "7"])

    assert whole.exit_code == rest.exit_code == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["sample-000.jpg", "sample-001.jpg", "sample-002.jpg"]
    assert (tmp_path / "whole/sample-002.jpg").read_bytes() == (tmp_path / "rest/sample-000.jpg").read_bytes()


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()

    result = CliRunner().invoke(sample, [str(tmp_path / "file" / "below")])

    assert isinstance(result.exception, StartupError)
    assert "Cannot write" in result.exception.detail
