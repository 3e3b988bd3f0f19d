"""The load generators against the real server, with a network that costs nothing."""

import pytest

from benchmarks import noop
from benchmarks.closed_loop import drive
from benchmarks.images import Batches, endless
from benchmarks.open_loop import Target
from benchmarks.open_loop import drive as arrive
from benchmarks.senders import Grpc, Http, Session, TritonHttp, logged_in, with_key
from benchmarks.stack import MemoryWatch, running
from dermserve import sample
from dermserve.errors import StartupError
from dermserve.settings import REPOSITORY_ROOT


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    repository = noop.copy(REPOSITORY_ROOT / "model_repository", tmp_path_factory.mktemp("noop"))
    with running(repository=repository) as stack:
        yield stack


@pytest.fixture(scope="module")
def files():
    return [sample.jpeg(seed) for seed in range(2)]


def test_every_way_in_is_answered_and_checked(stack, files):
    ways = [
        Grpc(stack.grpc),
        TritonHttp(stack.triton_http),
        Http(stack.url, stack.api_key),
        Session(stack.url, *logged_in(stack.url)),
    ]
    for connect in ways:
        found = drive(connect, endless(files), senders=2, seconds=1.0, warm_up_s=0.2)

        assert found.ms, connect
        assert found.failed == 0, found.faults


def test_a_batch_is_one_request(stack, files):
    pictures = Batches(endless(files), 16)

    found = drive(Grpc(stack.grpc), pictures, senders=2, seconds=3.0, warm_up_s=0.0, images_per_call=16)

    assert found.failed == 0, found.faults
    assert found.answered % 16 == 0 < found.answered
    assert found.answered <= 16 * len(found.ms)


def test_a_refused_image_is_a_fault_on_every_way(stack, files):
    damaged = [files[0][:2000]]
    for connect, said in (
        (Grpc(stack.grpc), "image_undecodable"),
        (TritonHttp(stack.triton_http), "image_undecodable"),
        (Http(stack.url, stack.api_key), "422"),
    ):
        found = drive(connect, endless(damaged), senders=1, seconds=0.5, warm_up_s=0.0)

        assert found.answered == 0
        assert all(said in fault for fault in found.faults), found.faults


def test_a_repeat_is_not_taken_for_a_new_answer(stack, files):
    send = Http(stack.url, stack.api_key)()
    send(files[0])

    with pytest.raises(Exception, match="200"):
        send(files[0])


def test_arrivals_are_answered_and_memory_is_sampled(stack, files):
    with MemoryWatch(stack, every_s=0.2) as watch:
        to = Target(stack.url, with_key(stack.api_key))
        run = arrive(to, endless(files), rate=10, seconds=1.5, seed=0, warm_up_s=0.0)

    assert run.count("right") == len(run.outcomes) > 0, run.faults
    rss, pss = watch.peak()
    assert 2**26 < pss < rss
    assert len(watch.samples) > 1


def test_a_stack_that_cannot_start_says_why(tmp_path):
    with pytest.raises(StartupError, match="model"), running(repository=tmp_path):
        pass


def test_only_a_network_of_a_cpu_is_replaced(tmp_path):
    with pytest.raises(StartupError, match=r"melanoma/1/model\.py"):
        noop.copy(tmp_path, tmp_path / "copy")
