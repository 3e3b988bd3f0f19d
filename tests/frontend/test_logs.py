"""The web server's log: when, what, by whom, and never a name."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from deploy.local import _web
from frontend import logs
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    yield browser
    browser.client.close()


@pytest.fixture
def written(server: Server, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    del server
    caplog.clear()
    return caplog


def lines(written: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in written.records if record.name == "frontend.logs"]


def test_refused_access_is_written_by_ids(
    server: Server, member: Browser, jpegs: list[bytes], written: pytest.LogCaptureFixture
) -> None:
    key = {"Authorization": f"Bearer {member.create_key()}"}
    other = Browser(server.url)
    other.register()
    result = other.upload(jpegs[0], name="a patient.jpg").json()["id"]
    [user] = execute(server, "SELECT id FROM users WHERE email = $1", member.email)
    [key_row] = execute(server, "SELECT id FROM api_keys WHERE user_id = $1", user["id"])
    assert member.get(f"/predictions/{result}").status_code == 404
    assert httpx.get(f"{server.url}/v1/predictions/{result}", headers=key).status_code == 404
    assert member.get("/admin").status_code == 403
    assert member.client.post("/logout", data={"csrf_token": "forged"}).status_code == 403
    assert lines(written) == [
        f"refused not_found: GET /predictions/{{prediction_id:uuid}}, account {user['id']}, key -, object {result}",
        f"refused not_found: GET /v1/predictions/{{prediction_id:uuid}}, account {user['id']}, key {key_row['id']}, "
        f"object {result}",
        f"refused forbidden: GET /admin, account {user['id']}, key -, object -",
        f"refused forbidden: POST /logout, account {user['id']}, key -, object -",
    ]


def test_guesses_are_written_and_mere_visits_are_not(server: Server, written: pytest.LogCaptureFixture) -> None:
    visitor = Browser(server.url)
    for path in ("/history", "/nothing", "/"):
        visitor.get(path)
    assert lines(written) == []
    for _ in range(11):
        visitor.log_in("a wrong guess")
    httpx.get(f"{server.url}/v1/predictions", headers={"Authorization": "Bearer derm_guess"})
    found = lines(written)
    assert found[:10] == ["refused unauthenticated: POST /login, account -, key -, object -"] * 10
    assert found[10:] == [
        "refused rate_limited: POST /login, account -, key -, object -",
        "refused unauthenticated: GET /v1/predictions, account -, key -, object -",
    ]


def test_guesser_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    now, kept = 6e6, []
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    sparing = logs.Sparing()

    def write(words: str, *arguments: object) -> None:
        record = logging.LogRecord("x", logging.WARNING, "", 0, words, arguments, None)
        if sparing.filter(record):
            kept.append(record.getMessage())

    for number in range(100):
        write("refused %d", number)
    write("started")
    assert kept == [*(f"refused {number}" for number in range(60)), "started"]
    now += 60
    write("refused %d", 100)
    write("refused %d", 101)
    assert kept[61:] == ["refused 100 (and 40 more like it before)", "refused 101"]


def test_every_line_bears_its_time(server: Server, tmp_path: Path) -> None:
    port = server.settings.port
    settings = server.settings.model_copy(update={"port": port + 1 if port < 65_535 else port - 1})
    environment = {
        "DERMSERVE_DATABASE_URL": str(settings.database_url),
        "DERMSERVE_MODEL_REPOSITORY": str(settings.model_repository),
        "DERMSERVE_STATE_DIR": str(settings.state_dir),
    }
    began, url = datetime.now(UTC), f"http://127.0.0.1:{settings.port}"
    with (tmp_path / "web.log").open("wb") as log:
        process = subprocess.Popen(_web(settings, {}).command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"{url}/healthz").status_code == 200
                break
            except httpx.ConnectError:
                assert process.poll() is None, (tmp_path / "web.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with httpx.Client(headers={"Authorization": "Bearer derm_guess"}) as guesser:
            for _ in range(130):  # in two minutes at most
                guesser.get(f"{url}/v1/predictions")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    text = (tmp_path / "web.log").read_text()
    for line in text.splitlines():
        found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (INFO|WARNING) \S", line)
        assert found, line
        assert abs((datetime.fromisoformat(found[1]) - began).total_seconds()) < 120
    assert 60 <= text.count("refused unauthenticated: GET /v1/predictions") <= 120
    assert "Application startup complete" in text
