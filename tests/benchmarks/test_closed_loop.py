import pytest

from benchmarks.closed_loop import Window, drive
from benchmarks.images import Batches, endless
from dermserve import sample
from dermserve.errors import StartupError
from tests.benchmarks import fake


@pytest.fixture(scope="module")
def pictures():
    return endless([sample.jpeg(0)])


def test_answers_of_all_senders_are_counted_in_the_window_only(pictures):
    found = drive(fake.Sleeper(0.05), pictures, senders=4, seconds=1.0, warm_up_s=0.5)

    assert 0 < found.answered <= 80  # 4 senders of at most 20 a second, and nothing of the warm-up
    assert found.failed == 0
    assert found.per_second == found.answered
    assert min(found.ms) >= 50


def test_an_answer_after_the_end_is_not_throughput_but_shows_in_the_latencies(pictures):
    found = drive(fake.Sleeper(0.01, stall_every=20, stall_s=1.5), pictures, senders=1, seconds=1.0, warm_up_s=0.0)

    assert found.percentiles()["p99"] >= 1500
    assert found.answered < 20


def test_faults_are_counted_by_what_they_say_and_are_no_answers(pictures):
    found = drive(fake.refusing_every_second, pictures, senders=2, seconds=1.0, warm_up_s=0.0)

    assert found.faults == {"503 overloaded": found.failed}
    assert found.failed > 2
    assert abs(found.answered - found.failed) <= 4


def test_a_batch_counts_as_its_images(pictures):
    found = drive(fake.Sleeper(0.05), Batches(pictures, 16), senders=1, seconds=1.0, warm_up_s=0.0, images_per_call=16)

    assert found.answered == 16 * (found.answered // 16) > 0
    assert found.answered // 16 <= 20


def test_what_the_generator_costs_is_told(pictures):
    working = drive(fake.busy, pictures, senders=1, seconds=1.0, warm_up_s=0.0)
    waiting = drive(fake.Sleeper(0.2), pictures, senders=1, seconds=1.0, warm_up_s=0.0)

    assert working.client_cores > 5 * waiting.client_cores


def test_no_file_comes_twice_though_threads_share_them(pictures):
    found = drive(fake.only_distinct, pictures, senders=8, seconds=0.5, warm_up_s=0.0)

    assert found.failed == 0
    assert found.answered > 8


def test_a_sender_that_cannot_connect_ends_the_run(pictures):
    with pytest.raises(StartupError, match="nobody listens"):
        drive(fake.unreachable, pictures, senders=3, seconds=30, warm_up_s=0.0)


def test_goodput_counts_what_came_within_the_bound():
    window = Window(answered=40, failed=0, seconds=2.0, ms=(10.0, 20.0, 30.0, 2000.0))

    assert window.per_second == 20
    assert window.goodput(1000) == 15
    assert Window(0, 3, 2.0, ()).goodput(1000) == 0
    assert Window(0, 3, 2.0, ()).percentiles() == {}
