"""`dermserve predict` through the HTTP API: servers and proxies that answer as told."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dermserve.errors import Forbidden, InferenceUnavailable, RequestInvalid
from dermserve.predict import patience, predict
from tests.dermserve.test_client import answering
from tests.dermserve.test_client import serving as triton

Answer = tuple[int, dict[str, str], bytes]


def run(folder: Path, out: Path, url: str, *options: str, key: str = "k", suffix: str = "csv") -> Result:
    return CliRunner().invoke(
        predict, [str(folder), f"--{suffix}", str(out), "--url", url, *options], env={"DERMSERVE_API_KEY": key}
    )


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(f"image {number}".encode())
    return folder


def result(data: bytes, melanoma: float = 0.25, **changes: Any) -> Answer:
    body = {
        "probabilities": {"benign": 0.5, "suspicious": 0.25, "malignant": 0.25, "melanoma": melanoma},
        "image": {"sha256": hashlib.sha256(data).hexdigest()},
        "quality": {"flags": [], "abstained": False},
        "model": {"name": "melanoma", "version": "1"},
    }
    return 201, {"Content-Type": "application/json"}, json.dumps(body | changes).encode()


def problem(status: int, code: str, detail: str = "said so", **headers: str) -> Answer:
    body = {"type": "x", "title": "t", "status": status, "code": code, "detail": detail}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/problem+json", **sent}, json.dumps(body).encode()


@contextmanager
def serving(answer: Callable[[bytes, Any], Answer]) -> Iterator[str]:
    """A server that answers each image as told: `answer` gets the body and the headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/predictions"
            data = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = answer(data, self.headers)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{one.server_port}"
    finally:
        one.shutdown()
        one.server_close()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermserve.predict.pace._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("dermserve.predict.pace._LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("dermserve.predict.scoring._LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(patience, "_START_S", 0.3)


def test_the_key_and_the_digest_go_with_each_image(tmp_path: Path) -> None:
    seen = []

    def answer(data: bytes, headers: Any) -> Answer:
        seen.append((headers["Authorization"], headers["Idempotency-Key"] == hashlib.sha256(data).hexdigest()))
        return result(data)

    (tmp_path / "key").write_text("derm_from_file\n")
    with serving(answer) as url:
        done = run(images(tmp_path / "in", 2), tmp_path / "out.csv", url, "--api-key-file", str(tmp_path / "key"))
    assert done.exit_code == 0, done.output
    assert seen == [("Bearer derm_from_file", True)] * 2


@pytest.mark.parametrize("key", ["", " ", "two words", "ä"])
def test_without_a_key_that_can_be_one_nothing_is_sent(tmp_path: Path, key: str) -> None:
    done = run(images(tmp_path / "in", 1), tmp_path / "out.csv", "http://127.0.0.1:9", key=key)
    assert isinstance(done.exception, RequestInvalid)
    assert "key" in done.exception.detail
    assert done.exception.exit_status == 2


@pytest.mark.parametrize("url", ["https://a:8000,https://b:8000", "https://me:secret@host", "https://"])
def test_an_address_that_is_more_than_one_is_refused(tmp_path: Path, url: str) -> None:
    done = run(images(tmp_path / "in", 1), tmp_path / "out.csv", url)
    assert isinstance(done.exception, RequestInvalid)
    assert "secret" not in done.exception.detail


@pytest.mark.parametrize("refusal", [
    problem(503, "overloaded", Retry_After="0"),
    problem(429, "rate_limited", Retry_After=formatdate(0, usegmt=True)),
    problem(503, "database_unavailable"),
    (502, {}, b"<html>bad gateway</html>"),
    (200, {}, b"<html>welcome to the hospital's network</html>"),
    result(b"another image"),
    problem(500, "internal_error"),
], ids=["overloaded", "rate", "database", "gateway", "captive", "mixed up", "internal"])  # fmt: skip
def test_what_passes_costs_no_image(tmp_path: Path, refusal: Answer) -> None:
    turn = 0

    def answer(data: bytes, headers: Any) -> Answer:
        nonlocal turn
        turn += 1
        return refusal if turn % 3 == 2 else result(data, melanoma=int(data.split()[-1]) / 100)

    with serving(answer) as url:
        done = run(images(tmp_path / "in", 10), tmp_path / "out.csv", url, "--concurrency", "3")
    assert done.exit_code == 0, done.output
    assert turn > 10
    assert [(row[0], float(row[4])) for row in rows(tmp_path / "out.csv")] == [(f"{n}.jpg", n / 100) for n in range(10)]


def test_retry_after_is_waited_for_by_all(tmp_path: Path) -> None:
    came: list[float] = []

    def answer(data: bytes, headers: Any) -> Answer:
        came.append(time.monotonic())
        return problem(503, "overloaded", Retry_After="1") if len(came) == 1 else result(data)

    with serving(answer) as url:
        done = run(images(tmp_path / "in", 3), tmp_path / "out.csv", url, "--concurrency", "1")
    assert done.exit_code == 0
    assert came[1] - came[0] >= 1.0


@pytest.mark.parametrize(("refusal", "error"), [
    (problem(403, "forbidden"), Forbidden),
    ((404, {}, b"no such page"), RequestInvalid),
    ((301, {"Location": "https://elsewhere"}, b""), RequestInvalid),
    (problem(422, "request_invalid"), RequestInvalid),
], ids=["forbidden", "not ours", "moved", "invalid"])  # fmt: skip
def test_what_is_wrong_with_every_request_ends_the_run(tmp_path: Path, refusal: Answer, error: type[Exception]) -> None:
    with serving(lambda data, headers: refusal) as url:
        done = run(images(tmp_path / "in", 3), tmp_path / "out.csv", url)
    assert isinstance(done.exception, error)
    assert done.exception.exit_status == 2  # type: ignore[attr-defined]
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "refusal", [problem(422, "image_undecodable"), (413, {}, b""), problem(409, "idempotency_conflict")]
)
def test_an_image_that_is_refused_is_a_row_of_its_own(tmp_path: Path, refusal: Answer) -> None:
    with serving(lambda data, headers: refusal if data == b"image 1" else result(data)) as url:
        done = run(images(tmp_path / "in", 3), tmp_path / "out.csv", url)
    assert done.exit_code == 1
    assert [row[0] for row in rows(tmp_path / "out.csv")] == ["0.jpg", "2.jpg"]
    assert [row[0] for row in rows(tmp_path / "out.errors.csv")] == ["1.jpg"]


def test_an_image_that_only_the_server_fails_on_is_given_up_alone_and_comes_again(tmp_path: Path) -> None:
    def answer(data: bytes, headers: Any) -> Answer:
        return problem(500, "internal_error", "It fell over.") if data == b"image 1" else result(data)

    folder, out = images(tmp_path / "in", 40), tmp_path / "out.csv"
    with serving(answer) as url:
        done = run(folder, out, url, "--give-up-after", "0.1", "--concurrency", "2")
    assert done.exit_code == 1, done.output
    assert rows(tmp_path / "out.errors.csv") == [["1.jpg", "inference_unavailable", "It fell over."]]
    with serving(lambda data, headers: result(data)) as url:
        done = run(folder, out, url, "--resume")
    assert done.exit_code == 0, done.output
    assert "1 that could not be read, or not be scored, are tried again." in done.output
    assert [row[0] for row in rows(out)] == sorted(f"{number}.jpg" for number in range(40))
    assert not (tmp_path / "out.errors.csv").exists()


def test_the_servers_own_verdict_is_what_is_abstained_on(tmp_path: Path) -> None:
    def answer(data: bytes, headers: Any) -> Answer:
        return result(data, quality={"flags": [], "abstained": data == b"image 1"})

    with serving(answer) as url:
        done = run(images(tmp_path / "in", 3), tmp_path / "out.csv", url)
    assert "3 rows in" in done.output
    assert "1 of them abstained on" in done.output
    assert rows(tmp_path / "out.abstained.csv") == [["1.jpg", "", ""]]


def test_results_of_different_models_are_told(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 3), tmp_path / "out.csv"
    (folder / "1.jpg").rename(tmp_path / "1.jpg")
    with serving(lambda data, headers: result(data)) as url:
        assert "different models" not in run(folder, out, url).output
    (tmp_path / "1.jpg").rename(folder / "1.jpg")
    with serving(lambda data, headers: result(data, model={"name": "melanoma", "version": "2"})) as url:
        assert (
            "These results are of different models: melanoma 1, melanoma 2" in run(folder, out, url, "--resume").output
        )


def test_what_triton_marked_stays_marked_when_the_api_goes_on(tmp_path: Path) -> None:
    folder, out = images(tmp_path / "in", 2), tmp_path / "out.csv"
    with triton(lambda request, context: answering(request, 0.25, 99.0)) as url:
        run(folder, out, url)
    marked = rows(tmp_path / "out.abstained.csv")
    assert [row[:2] for row in marked] == [["0.jpg", "99.000000"], ["1.jpg", "99.000000"]]
    (folder / "2.jpg").write_bytes(b"image 2")
    with serving(lambda data, headers: result(data, quality={"abstained": True})) as url:
        assert run(folder, out, url, "--resume").exit_code == 0
    assert rows(tmp_path / "out.abstained.csv") == [*marked, ["2.jpg", "", ""]]


def test_a_server_that_is_away_is_one_line_with_the_reason(tmp_path: Path) -> None:
    done = run(images(tmp_path / "in", 2), tmp_path / "out.csv", "http://127.0.0.1:9")
    assert isinstance(done.exception, InferenceUnavailable)
    assert done.exception.exit_status == 3
    assert "No dermserve answers at http://127.0.0.1:9 (" in done.exception.detail
    assert "Nothing was written." in done.exception.detail
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
