"""`dermserve admin`, beside a running server and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from click.testing import CliRunner
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import create_async_engine

from dermserve.errors import Conflict, NotFound, RequestInvalid, StartupError
from dermserve.settings import Settings
from frontend.access import Caller
from frontend.commands import admin
from frontend.database import URL_FILE, Database, engine_url, migrate, migration_config
from frontend.identity.second_factor import SecondFactor
from frontend.identity.users import Users
from frontend.vault import KEY_FILE, Vault
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, new_email, new_key
from tests.frontend.test_identity import code


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


@pytest.mark.parametrize("by_file", [False, True])
def test_secret_key_is_replaced_and_second_factors_stay(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_file: bool
) -> None:
    url, old, new = cluster.create(), "o" * 32, "n" * 32
    monkeypatch.setenv("DERMSERVE_DATABASE_URL", url)
    monkeypatch.setenv("DERMSERVE_STATE_DIR", str(tmp_path))

    def hold(*keys: str) -> Vault:
        """Let the server and the command have these keys."""
        if by_file:
            (tmp_path / KEY_FILE).write_text("\n".join(keys))
        else:
            monkeypatch.setenv("DERMSERVE_SECRET_KEY", ",".join(keys))
        return Vault.of(Settings())

    async def on_database(work: Callable[[Database], Awaitable[Any]]) -> Any:
        database = Database(url)
        try:
            return await work(database)
        finally:
            await database.close()

    async def set_up(database: Database) -> tuple[Caller, str]:
        user, factor = await Users(database).register(new_email(), PASSWORD), SecondFactor(database, hold(old))
        letters = (await factor.offer(user)).letters.replace(" ", "")
        await factor.turn_on(user, code(letters, -1), keep_session="")
        return user, letters

    user, letters = asyncio.run(on_database(set_up))

    def logs_in(vault: Vault, steps: int) -> bool:
        found = on_database(lambda database: SecondFactor(database, vault).log_in(user.user_id, code(letters, steps)))
        return asyncio.run(found) is not None

    assert not logs_in(hold(new), 0)
    wrong = CliRunner().invoke(admin, ["rotate-secret"])
    assert (wrong.exit_code, "none of the keys opens: 1" in wrong.output) == (1, True)
    assert logs_in(hold(new, old), 0)
    assert "newest key: 1." in run("rotate-secret")
    assert "newest key: 0." in run("rotate-secret")
    assert logs_in(hold(new), 1)


@pytest.mark.parametrize("keys", ["n" * 32 + ",short", "n" * 32 + ","])
def test_keys_that_are_none(keys: str) -> None:
    with pytest.raises(StartupError, match="at least 32 characters"):
        Vault.of(Settings(secret_key=SecretStr(keys)))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE users SET disabled_at = now()", "1 disabled accounts"),
        ("UPDATE users SET totp_since = now()", "1 accounts with a second factor"),
        ("UPDATE api_keys SET scopes = '{read}'", "1 keys in use"),
        ("UPDATE api_keys SET expires_at = now()", "1 keys in use"),
        ("UPDATE api_keys SET scopes = '{read}', revoked_at = now()", None),
    ],
)
def test_older_schema_does_not_open_what_is_barred(cluster: Cluster, statement: str, words: str | None) -> None:
    url = cluster.create()
    new_key(Settings(database_url=url))
    cluster.execute(statement, engine_url(url).database or "")

    async def downgrade() -> None:
        engine = create_async_engine(engine_url(url))
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: command.downgrade(migration_config(sync), "0001"))
        await engine.dispose()

    if words is None:
        asyncio.run(downgrade())
        return
    with pytest.raises(StartupError, match=words):
        asyncio.run(downgrade())
    migrate(url)
    cluster.execute("SELECT disabled_at FROM users", engine_url(url).database or "")


def test_migrate(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.execute("CREATE DATABASE by_hand")
    monkeypatch.setenv("DERMSERVE_DATABASE_URL", cluster.url("by_hand"))
    assert "up to date" in run("migrate")
    cluster.execute("SELECT count(*) FROM predictions", "by_hand")


def test_senders_are_allowed_listed_and_removed(server: Server, state: Path) -> None:
    email = new_email()
    run("create-user", email, "--password", PASSWORD)
    said = run("allow-sender", "GATEWAY 1", "--network", "10.20.0.0/24", "--network", "192.0.2.7")
    assert "service:gateway 1" in said
    run("allow-sender", "DERM_PACS", "--network", "2001:db8::/32", "--user", email, "--report-to", "[2001:db8::1]:104")
    listed = [line.split("\t") for line in run("senders").splitlines()]
    assert ["GATEWAY 1", "10.20.0.0/24,192.0.2.7/32", "service:gateway 1", "-"] in listed
    assert ["DERM_PACS", "2001:db8::/32", email, "2001:db8::1:104"] in listed
    with pytest.raises(Conflict):
        run("allow-sender", "DERM_PACS", "--network", "10.0.0.0/8")
    for wrong in (["A\\B"], ["X" * 17], ["OTHER", "--network", "10.0.0.1/8"], ["OTHER", "--report-to", "nowhere"]):
        with pytest.raises(RequestInvalid):
            run("allow-sender", *wrong, "--network", "10.0.0.0/8")
    for title in ("GATEWAY 1", "DERM_PACS"):
        assert "no more" in run("remove-sender", title)
    assert run("senders") == ""
    with pytest.raises(NotFound):
        run("remove-sender", "DERM_PACS")
