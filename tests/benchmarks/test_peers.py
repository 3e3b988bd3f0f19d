import json
import math
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from benchmarks.alternation import Series
from benchmarks.peers import comparison, process, reference, wire
from benchmarks.peers.catalogue import PEERS, code_lines
from benchmarks.peers_commands import peers as command
from dermserve import sample
from dermserve.errors import StartupError
from dermserve.image import prepare
from dermserve.settings import Settings

RIGHT = [0.6, 0.1, 0.3, 0.2]
OTHER = [0.1, 0.1, 0.8, 0.7]

needs_peers = pytest.mark.skipif(
    not process.ENVIRONMENT.exists(), reason="the other servers are not installed (deploy/setup.sh peers)"
)


@pytest.fixture(scope="module")
def files():
    return [sample.jpeg(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def expected(files):
    return reference.expected(Settings().model_repository, files, "FP32")[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OTHER, "another answer"),
        ([0.6, 0.1, 0.3], "four finite"),
        ([0.6, 0.1, 0.3, math.nan], "four finite"),
        ([0.6, 0.1, 0.2, 0.2], "sum to 1"),
        ([0.9, -0.2, 0.3, 0.2], "sum to 1"),
        ([0.6, 0.1, 0.3, 0.31], "part of malignant"),
        (None, "no list"),
        ({"detail": "error"}, "no list"),
    ],
)
def test_only_the_right_answer_of_the_picture_is_accepted(answer, said):
    expectation = wire.Expected([OTHER, RIGHT], 1e-3)

    expectation.check(1, [0.6005, 0.0995, 0.3, 0.2])
    with pytest.raises(wire.Wrong, match=said):
        expectation.check(1, answer)


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        [RIGHT],
        {"probabilities": RIGHT},
        {"probabilities": dict(zip(("benign", "suspicious", "malignant", "melanoma"), RIGHT, strict=True))},
    ],
)
def test_the_columns_are_found_in_each_servers_answer(answer):
    assert wire.columns(answer) == RIGHT


def test_no_file_comes_twice_and_each_keeps_its_pixels(files):
    numbered = wire.Numbered(files)
    taken = [next(source) for source in (numbered, pickle.loads(pickle.dumps(numbered))) for _ in range(4)]

    assert [number for number, _ in taken] == [0, 1, 2, 0] * 2
    assert len({file for _, file in taken}) == 8
    for number, file in taken:
        assert (prepare(file).pixels == prepare(files[number]).pixels).all()


@pytest.fixture
def fake_server():
    """Answers with what stands in `answers`, the last one over and over; counts its connections."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            server.connections += 1

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, content = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.connections = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_sender_keeps_its_connection_and_tells_refusals_from_wrong_answers(fake_server):
    fake_server.answers = [(200, RIGHT), (503, {"detail": "full"}), (200, OTHER), (200, RIGHT)]
    send = wire.Http(fake_server.server_port, "/", "raw", wire.Expected([RIGHT], 1e-3))()

    send((0, b"image"))
    with pytest.raises(wire.Wrong, match="status 503"):
        send((0, b"image"))
    with pytest.raises(wire.Wrong, match="another answer"):
        send((0, b"image"))
    send((0, b"image"))

    assert fake_server.connections == 1


def test_lines_of_code_are_those_that_say_something():
    source = '"""Module."""\n\nimport a  # why\n\n# comment\ndef f():\n    """Two\n    lines."""\n    return """text\n    """\n'

    assert code_lines(source) == 4


def test_every_server_shows_what_a_user_has_to_write():
    assert all(5 < one.lines < 40 for one in PEERS)


def test_servers_are_compared_beside_the_limit_of_their_own_minute():
    ours = Series(results=[], values=[30.0, 15.0], references=[30.0, 15.0])
    theirs = Series(results=[], values=[5.0, 10.0], references=[15.0, 30.0])

    assert comparison.advantage(ours, theirs) == pytest.approx([3.0, 3.0])


def test_noise_is_that_of_equal_code_and_shrinks_with_more_rounds():
    windows = 30 * (1 + 0.03 * np.random.default_rng(1).standard_normal(71))
    drifting = np.linspace(30, 40, 71)

    assert comparison.noise([30.0] * 20, 5) == 0.0
    assert comparison.noise(drifting, 5) < 0.001  # neighbours share a slow drift
    assert 0.02 < comparison.noise(windows, 5) < 0.08
    assert comparison.noise(windows, 21) < comparison.noise(windows, 5)


def test_cores_are_counted_within_the_window():
    watch = process.CpuWatch([])
    watch.spent = [process.Spent(0, 0.0), process.Spent(1, 9.0), process.Spent(3, 12.0), process.Spent(4, 50.0)]

    assert watch.cores(0.5, 3.5) == 1.5
    assert watch.cores(1.5, 2.5) == 0.0


def test_without_the_servers_the_command_says_how_to_install_them(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "ENVIRONMENT", tmp_path)

    error = CliRunner().invoke(command, ["--quick", "--out", str(tmp_path)]).exception

    assert isinstance(error, StartupError)
    assert "deploy/setup.sh peers" in str(error)


@needs_peers
def test_pytorch_gives_the_answers_of_the_engine(files, expected):
    job = comparison.Job(Settings().model_repository, files, expected)

    found = reference.require_same(job, ["torch"])

    assert found["largest_difference_torch"] < 1e-5
    assert {"fastapi", "ray", "torch"} <= set(found["versions"])


@needs_peers
def test_other_weights_are_not_measured(files, expected):
    answers = [expected.answers[0], (np.array(expected.answers[1]) + 2e-4).tolist(), expected.answers[2]]
    job = comparison.Job(Settings().model_repository, files, wire.Expected(answers, 1e-3))

    with pytest.raises(StartupError, match="answer otherwise"):
        reference.require_same(job, ["torch"])


@needs_peers
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["torch", "engine"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda one: one.name)
def test_a_server_answers_rightly_on_loopback_only_and_leaves_nothing_behind(
    peer, choice, files, expected, monkeypatch
):
    monkeypatch.setenv("DERMSERVE_PRECISION", "FP32")
    with process.serving(peer, choice, Settings().model_repository) as server:
        connect = wire.Http(server.port, peer.path, peer.encoding, expected)
        server.until_right(connect, (0, files[0]))
        send, pictures = connect(), wire.Numbered(files)
        for _ in range(len(files)):
            send(next(pictures))
        members = server.processes()
        heard = {place.laddr.ip for one in members for place in listening(one)}

    # Ray's replicas listen to each other everywhere; a token guards that port.
    assert heard - {"127.0.0.1", "::ffff:127.0.0.1"} == ({"::"} if peer.name == "Ray Serve" else set())
    assert len(members) > 2
    assert not [one for one in members if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def listening(one):
    return [place for place in one.net_connections(kind="inet") if place.status == psutil.CONN_LISTEN]
