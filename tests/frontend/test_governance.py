"""Organisations and members, retention, and the audit that shows whether anybody altered it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner

from frontend import audit
from frontend.access import Role
from frontend.commands import admin as admin_command
from frontend.database import Database
from frontend.models import AuditEntry
from frontend.retention import expire
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, execute
from tests.frontend.test_identity import again


@pytest.fixture
def administrator(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    execute(server, "UPDATE users SET role = $2 WHERE email = $1", browser.email, Role.ADMIN)
    yield browser
    browser.client.close()


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    yield browser
    browser.client.close()


def identity(server: Server, browser: Browser) -> str:
    return str(execute(server, "SELECT id FROM users WHERE email = $1", browser.email)[0]["id"])


def organisation(administrator: Browser, name: str) -> str:
    assert administrator.post("/admin/organisations", page="/admin", name=name).status_code == 303
    found = re.search(
        rf'action="/admin/organisations/([0-9a-f-]+)" aria-label="{name}"', administrator.get("/admin").text
    )
    assert found
    return found[1]


def test_member_of_an_organisation(administrator: Browser, member: Browser, server: Server) -> None:
    hospital = organisation(administrator, f"Hospital {member.email}")
    user = identity(server, member)
    fields = {"role": "engineer", "organisation": hospital, "enabled": "1"}
    assert administrator.post(f"/admin/members/{user}", page="/admin", **fields).status_code == 303
    page = member.get("/profile").text
    assert f"Hospital {member.email}" in page
    assert "Engineer" in page


def test_disabled_account_is_out_at_once_with_its_keys(administrator: Browser, member: Browser, server: Server) -> None:
    key = member.create_key()
    user = identity(server, member)
    fields = {"role": "clinician", "organisation": ""}
    assert administrator.post(f"/admin/members/{user}", page="/admin", **fields).status_code == 303
    assert member.get("/upload").status_code == 303
    assert again(member).log_in().status_code == 401
    status = member.client.get("/v1/predictions", headers={"Authorization": f"Bearer {key}"}).status_code
    assert status == 401
    assert administrator.post(f"/admin/members/{user}", page="/admin", **fields, enabled="1").status_code == 303
    assert again(member).log_in().status_code == 303


def test_administrator_cannot_lock_themselves_out(administrator: Browser, server: Server) -> None:
    own = identity(server, administrator)
    for fields in ({"role": "clinician", "enabled": "1"}, {"role": "admin"}):
        assert administrator.post(f"/admin/members/{own}", page="/admin", **fields).status_code == 422
    assert administrator.get("/admin").status_code == 200


@pytest.mark.parametrize("fields", [{"role": "king"}, {"role": "admin", "organisation": "x"}])
def test_made_up_roles_and_organisations(
    administrator: Browser, member: Browser, server: Server, fields: dict[str, str]
) -> None:
    path = f"/admin/members/{identity(server, member)}"
    assert administrator.post(path, page="/admin", enabled="1", **fields).status_code == 422
    assert member.get("/admin").status_code == 403


def test_results_are_kept_as_long_as_the_organisation_says(
    administrator: Browser, member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    hospital = organisation(administrator, f"Clinic {member.email}")
    fields = {"role": "clinician", "organisation": hospital, "enabled": "1"}
    administrator.post(f"/admin/members/{identity(server, member)}", page="/admin", **fields)
    path = f"/admin/organisations/{hospital}"
    for days in ("0", "-1", "1.5", "many"):
        assert administrator.post(path, page="/admin", name="x", retention_days=days).status_code == 422
    renamed = administrator.post(path, page="/admin", name=f"Clinic {member.email}", retention_days="30")
    assert renamed.status_code == 303
    outsider = Browser(server.url)
    outsider.register()
    results = {name: browser.upload(jpegs[n]).json()["id"] for n, (name, browser) in enumerate(
        {"old": member, "new": member, "outside": outsider}.items())}  # fmt: skip
    for name in ("old", "outside"):
        query = "UPDATE predictions SET created_at = now() - interval '31 days' WHERE id = $1::text::uuid"
        execute(server, query, results[name])

    async def run() -> int:
        assert server.settings.database_url
        database = Database(server.settings.database_url)
        try:
            return await expire(database)
        finally:
            await database.close()

    assert asyncio.run(run()) == 1
    statuses = {name: b.get(f"/predictions/{results[name]}").status_code for name, b in
                (("old", member), ("new", member), ("outside", outsider))}  # fmt: skip
    assert statuses == {"old": 404, "new": 200, "outside": 200}
    assert asyncio.run(run()) == 0


def test_stale_tab_overwrites_nothing(administrator: Browser, member: Browser, server: Server) -> None:
    hospital = organisation(administrator, f"Ward {member.email}")
    for path, fields, other in (
        (f"/admin/organisations/{hospital}", {"name": f"Ward {member.email}"}, {"retention_days": "30"}),
        (f"/admin/members/{identity(server, member)}", {"role": "engineer"}, {"enabled": "1"}),
    ):
        page = administrator.get(f"/admin?search={member.email}").text
        seen = re.search(rf'action="{path}".*?name="seen" value="([^"]*)"', page, re.DOTALL)
        assert seen
        changed = administrator.post(path, page="/admin", **fields, **other, seen=seen[1])
        assert changed.status_code == 303
        stale = administrator.post(path, page="/admin", **fields, seen=seen[1])
        assert (stale.status_code, "Somebody else has changed this meanwhile" in stale.text) == (409, True)
    [row] = execute(server, "SELECT retention_days FROM organisations WHERE id = $1::text::uuid", hospital)
    assert row["retention_days"] == 30
    assert member.get("/upload").status_code == 200


def test_deletion_by_a_shorter_time_is_confirmed(
    administrator: Browser, member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    name, user = f"Clinic {member.email}", identity(server, member)
    hospital = organisation(administrator, name)
    path, at = f"/admin/organisations/{hospital}", f"/admin/members/{user}"
    for number, days in enumerate((400, 40, 4)):
        result = member.upload(jpegs[number]).json()["id"]
        query = "UPDATE predictions SET created_at = now() - $2 * interval '1 day' WHERE id = $1::text::uuid"
        execute(server, query, result, days)
    assert administrator.post(path, page="/admin", name=name, retention_days="365").status_code == 303
    moved = {"role": "clinician", "organisation": hospital, "enabled": "1", "search": member.email}
    asked = administrator.post(at, page="/admin", **moved)
    assert (asked.status_code, "1 result would be deleted at once" in asked.text) == (409, True)
    assert "none" in member.get("/profile").text
    assert name not in member.get("/profile").text
    assert administrator.post(at, page="/admin", **moved, confirmed="1").status_code == 303
    assert name in member.get("/profile").text
    for days, agreed, status in (("30", "", 409), ("30", "1", 409), ("30", "2", 303), ("", "", 303), ("900", "", 303)):
        answer = administrator.post(path, page="/admin", name=name, retention_days=days, confirmed=agreed)
        assert answer.status_code == status, (days, agreed)
        if status == 409:
            assert "2 results would be deleted at once" in answer.text
            assert re.search(r'value="30"', answer.text), "what was entered stays"
            [row] = execute(server, "SELECT retention_days FROM organisations WHERE id = $1::text::uuid", hospital)
            assert row["retention_days"] == 365


def test_audit_tells_who_did_what_and_names_nobody(
    administrator: Browser, member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    result = member.upload(jpegs[0], name="a patient.jpg").json()["id"]
    member.get(f"/predictions/{result}")
    member.get("/history.csv")
    member.post(f"/predictions/{result}/delete", page="/history")
    again(member).log_in("wrong wrong wrong")
    user = execute(server, "SELECT id FROM users WHERE email = $1", member.email)[0]["id"]
    rows = execute(server, "SELECT * FROM audit WHERE actor = $1 OR object = $1::text ORDER BY number", user)
    assert [row["action"] for row in rows] == [
        "account.registered", "account.logged_in", "result.read", "results.exported", "result.deleted",
        "account.login_failed",
    ]  # fmt: skip
    assert "patient" not in repr(rows)
    assert member.email not in repr(rows)
    assert "result.deleted" in administrator.get("/admin/audit").text


def test_deletions_are_repeated_on_a_restored_backup(
    server: Server,
    cluster: Cluster,
    start: Callable[..., Server],
    jpegs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    live = start(database_url=cluster.create())
    gone, stays = Browser(live.url), Browser(live.url)
    for browser in (gone, stays):
        browser.register()
    results = [stays.upload(data).json()["id"] for data in jpegs[:2]]
    key = stays.create_key()
    backup = cluster.copy(live.settings.database_url)
    [key_id] = re.findall(r'action="/keys/([0-9a-f-]+)/revoke"', stays.get("/keys").text)
    stays.post(f"/keys/{key_id}/revoke", page="/keys")
    gone.post("/profile/delete", page="/profile", password=PASSWORD)
    stays.post(f"/predictions/{results[0]}/delete", page="/history")

    def run(*arguments: str, url: str | None) -> str:
        monkeypatch.setenv("DERMSERVE_DATABASE_URL", url or "")
        result = CliRunner().invoke(admin_command, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    lines = run("deletions", "--since", "2026-01-01T00:00:00", url=live.settings.database_url)
    assert [line.split()[0] for line in lines.splitlines()] == ["key", "account", "result"]
    (tmp_path / "deletions.txt").write_text(lines)
    assert run("repeat-deletions", str(tmp_path / "deletions.txt"), url=backup) == "Deleted 3 rows.\n"
    restored = start(database_url=backup)
    assert again(stays).email == stays.email
    visitor, other = Browser(restored.url), Browser(restored.url)
    visitor.email, other.email = gone.email, stays.email
    assert [visitor.log_in().status_code, other.log_in().status_code] == [401, 303]
    assert [other.get(f"/predictions/{one}").status_code for one in results] == [404, 200]
    with_key = {"Authorization": f"Bearer {key}"}
    assert other.client.get("/v1/predictions", headers=with_key).status_code == 401


@pytest.fixture
def chain(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of its own with an audit of twenty rows, for `dermserve admin`."""
    url = cluster.create()
    monkeypatch.setenv("DERMSERVE_DATABASE_URL", url)

    async def fill() -> None:
        database = Database(url)
        for number in range(20):
            async with database.transaction() as session:
                await audit.append(session, audit.Action.RESULT_READ, actor=None, about=number)
        await database.close()

    asyncio.run(fill())
    return url


def tamper(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def verify(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(admin_command, ["verify-audit", *arguments])
    return result.exit_code, result.output


def test_whole_chain(chain: str) -> None:
    status, output = verify()
    assert (status, output.startswith("20 rows are whole")) == (0, True)
    head = output.split()[-1]
    assert verify("--count", "20", "--head", head)[0] == 0


def test_single_row(chain: str) -> None:
    tamper(chain, "SET session_replication_role = replica; DELETE FROM audit WHERE number > 1")
    status, output = verify()
    assert (status, output.startswith("1 row is whole; ")) == (0, True)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE audit SET action = 'result.deleted' WHERE number = 7", 7),
        ("UPDATE audit SET actor = gen_random_uuid() WHERE number = 7", 7),
        ("UPDATE audit SET at = at + interval '1 microsecond' WHERE number = 20", 20),
        ("DELETE FROM audit WHERE number = 7", 7),
        ("UPDATE audit SET number = 100 - number; UPDATE audit SET number = number - 79", 1),
    ],
)
def test_altered_row_shows(chain: str, statement: str, row: int) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        tamper(chain, statement)
    tamper(chain, f"SET session_replication_role = replica; {statement}")
    status, output = verify()
    assert status == 1
    assert f"Row {row} was altered" in output


def test_altered_row_with_a_new_hash_of_its_own_breaks_the_next(chain: str) -> None:
    async def forge() -> None:
        connection = await asyncpg.connect(chain)
        try:
            before, row = await connection.fetch("SELECT * FROM audit WHERE number IN (6, 7) ORDER BY number")
            forged = AuditEntry(**{**dict(row), "action": "result.deleted"})
            await connection.execute("SET session_replication_role = replica")
            query = "UPDATE audit SET action = $1, hash = $2 WHERE number = 7"
            await connection.execute(query, forged.action, audit._hash(before["hash"], forged))
        finally:
            await connection.close()

    asyncio.run(forge())
    status, output = verify()
    assert (status, "Row 8 was altered" in output) == (1, True)


def test_rows_cut_off_at_the_end_show_against_an_earlier_count(chain: str) -> None:
    head = verify()[1].split()[-1]
    tamper(chain, "SET session_replication_role = replica; DELETE FROM audit WHERE number > 15")
    assert verify()[0] == 0
    status, output = verify("--count", "20", "--head", head)
    assert (status, "cut off" in output) == (1, True)


def test_many_processes_write_one_chain(chain: str) -> None:
    async def write() -> None:
        databases = [Database(chain) for _ in range(4)]

        async def some(database: Database) -> None:
            for _ in range(10):
                async with database.transaction() as session:
                    await audit.append(session, audit.Action.LOGGED_IN, actor=None)

        await asyncio.gather(*map(some, databases))
        for database in databases:
            await database.close()

    asyncio.run(write())
    status, output = verify()
    assert (status, output.startswith("60 rows are whole")) == (0, True)
