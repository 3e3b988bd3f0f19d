import hashlib
import json
import subprocess
import sys

import pytest

from benchmarks import target
from benchmarks.load import LOCUSTFILE
from dermserve.errors import StartupError

IMAGE = b"the bytes that were sent"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:8000/", "http://[::1]:8000", "http://127.9.9.9"]
)
def test_this_machine_may_be_put_under_load(url):
    assert target.check(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5:8000",
        "http://0.0.0.0:8000",
        "https://example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@example.org",
        "http://127.0.0.1.example.org",
    ],
)
def test_another_machine_is_refused_unless_asked_for(url):
    with pytest.raises(StartupError, match="--allow-remote"):
        target.check(url)
    assert target.check(url, allow_remote=True) == url


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", ""])
def test_what_is_no_web_address_is_refused_even_if_remote_ones_are_allowed(url):
    with pytest.raises(StartupError, match="not an address"):
        target.check(url, allow_remote=True)


def test_locust_itself_refuses_another_machine():
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "-u1", "-t1s"]

    ended = subprocess.run(
        [*command, "--host", "http://192.0.2.1:8000"], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode != 0
    assert "192.0.2.1 is another machine" in ended.stderr


def answer(**changes):
    body = {
        "image": {"sha256": hashlib.sha256(IMAGE).hexdigest()},
        "probabilities": {"benign": 0.7, "suspicious": 0.1, "malignant": 0.2, "melanoma": 0.15},
    }
    return json.dumps(body | changes).encode()


def test_a_right_answer_has_no_fault():
    assert target.fault(201, answer(), IMAGE) is None


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (200, answer(), "200"),
        (503, b'{"code": "overloaded"}', "503 overloaded"),
        (0, None, "no answer"),
        (502, b"<html>", "502, and the body is not JSON"),
        (201, b"[]", "no JSON object"),
        (201, answer(image={"sha256": "0" * 64}), "another image"),
        (201, answer(image=None), "lacks"),
        (201, answer(probabilities={"benign": 1.0}), "lacks"),
        (201, answer(probabilities=dict.fromkeys(("benign", "suspicious", "malignant", "melanoma"), 0.3)), "sum to 1"),
        (
            201,
            answer(probabilities={"benign": 0.7, "suspicious": 0.1, "malignant": 0.2, "melanoma": 0.3}),
            "not a part",
        ),
    ],
)
def test_a_wrong_answer_is_named(status, body, fault):
    assert fault in target.fault(status, body, IMAGE)
