"""`dermserve admin`, beside a running server and without one."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from dermserve.errors import Conflict, StartupError
from frontend.commands import admin
from frontend.database import URL_FILE
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, new_email


@pytest.fixture
def state(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder as the embedded stack keeps it while it runs."""
    monkeypatch.delenv("DERMSERVE_DATABASE_URL", raising=False)
    monkeypatch.setenv("DERMSERVE_STATE_DIR", str(tmp_path))
    assert server.settings.database_url
    (tmp_path / URL_FILE).write_text(server.settings.database_url)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(admin, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def status_with(key: str, server: Server) -> int:
    return httpx.get(f"{server.url}/v1/predictions", headers={"Authorization": f"Bearer {key}"}).status_code


def test_key_of_the_service_account(server: Server, state: Path) -> None:
    outputs = [run("create-api-key", "--name", "gateway") for _ in range(2)]
    keys = [output.split()[-1] for output in outputs]
    assert len(outputs[0].splitlines()) == 1
    assert keys[0] != keys[1]
    assert [status_with(key, server) for key in keys] == [200, 200]
    visitor = Browser(server.url)
    visitor.email = "service:gateway"
    assert visitor.log_in().status_code == 401


def test_keys_of_one_name_share_their_results_and_others_do_not(
    server: Server, state: Path, jpegs: list[bytes]
) -> None:
    old, new, stranger = (
        run("create-api-key", "--name", name).split()[-1] for name in ("Gateway 1", "gateway 1", "gateway 2")
    )

    def send(key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg", "Idempotency-Key": "1"}
        return httpx.post(f"{server.url}/v1/predictions", content=jpegs[0], headers=headers)

    first = send(old)
    assert (first.status_code, send(new).status_code, send(stranger).status_code) == (201, 200, 201)
    one = f"{server.url}/v1/predictions/{first.json()['id']}"
    assert httpx.get(one, headers={"Authorization": f"Bearer {new}"}).status_code == 200
    assert httpx.get(one, headers={"Authorization": f"Bearer {stranger}"}).status_code == 404


def test_user_and_key_of_a_user(server: Server, state: Path) -> None:
    email = new_email()
    assert email in run("create-user", email, "--password", PASSWORD)
    key = run("create-api-key", "--name", "mine", "--user", email).split()[-1]
    assert status_with(key, server) == 200
    visitor = Browser(server.url)
    visitor.email = email
    assert visitor.log_in().status_code == 303
    with pytest.raises(Conflict):
        run("create-api-key", "--name", "mine", "--user", email)
    with pytest.raises(Conflict):
        run("create-user", email, "--password", PASSWORD)


def test_without_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DERMSERVE_DATABASE_URL", raising=False)
    monkeypatch.setenv("DERMSERVE_STATE_DIR", str(tmp_path))
    with pytest.raises(StartupError, match="dermserve serve"):
        run("create-api-key", "--name", "gateway")


def test_migrate(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.execute("CREATE DATABASE by_hand")
    monkeypatch.setenv("DERMSERVE_DATABASE_URL", cluster.url("by_hand"))
    assert "up to date" in run("migrate")
    cluster.execute("SELECT count(*) FROM predictions", "by_hand")
