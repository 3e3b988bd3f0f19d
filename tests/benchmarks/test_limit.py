import pytest

from benchmarks import limit
from benchmarks.limit import Arrangement, Limit
from dermserve import sample
from dermserve.errors import ImageError, StartupError
from dermserve.settings import REPOSITORY_ROOT


@pytest.fixture(scope="module")
def files():
    return [sample.jpeg(seed) for seed in range(2)]


def test_the_arrangement_with_the_highest_median_is_the_ceiling():
    lucky, steady = Arrangement("threads", 1), Arrangement("processes", 4)
    found = Limit(
        {lucky: [10.0, 11.0, 50.0], steady: [12.0, 13.0, 14.0]},
        {"threads": [300.0]},
        {"threads": [30.0]},
        {"threads": [20.0]},
    )

    assert found.best == steady
    assert found.ceiling == 13.0
    assert found.as_rows()["decode and model, threads, batch 1"] == {"median": 11.0, "min": 10.0, "max": 50.0}


def test_the_real_network_runs_in_every_batch(files):
    with limit.crew("threads", files, REPOSITORY_ROOT / "model_repository", workers=1) as crew:
        rates = [crew.rate("both", 0.1, batch=batch) for batch in (1, 4)]
        rates += [crew.rate(work, 0.1) for work in ("model", "served")]

    assert all(0 < rate < 2000 for rate in rates)


def test_processes_decode_without_any_network(files):
    with limit.crew("processes", files, None, workers=2) as crew:
        assert crew.size == 2
        assert crew.rate("decode", 0.2) > 0


def test_a_repository_without_a_network_is_refused(files, tmp_path):
    with pytest.raises(StartupError, match="dermserve export"), limit.crew("threads", files, tmp_path, workers=1):
        pass


def test_a_damaged_file_is_no_image_that_was_decoded(files):
    with pytest.raises(ImageError), limit.crew("threads", [files[0][:2000]], None, workers=1):
        pass
