"""What vanishes, comes all at once or answers junk at the worst moment costs no result and gives no error of ours."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from dermserve.errors import Conflict, StartupError
from dermserve.settings import Settings
from frontend import retention
from frontend.access import Caller
from frontend.database import Database, migrate
from frontend.identity.keys import Keys
from frontend.identity.users import Users
from frontend.lesions import Named
from frontend.vault import KEY_FILE, Vault
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, execute, new_email, new_key
from tests.frontend.test_lesions import send


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    browser.client.headers["X-CSRF-Token"] = browser.csrf("/profile")
    yield browser
    browser.client.close()


def test_lesion_deleted_before_the_result_is_stored(
    member: Browser, server: Server, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lesions = server.services().lesions
    ensure = lesions.ensure

    async def ensure_and_delete(caller: Caller, name: str, site: str | None) -> Named:
        found = await ensure(caller, name, site)
        await lesions.delete(caller, found.id)
        return found

    monkeypatch.setattr(lesions, "ensure", ensure_and_delete)
    kept = send(member, jpegs[0], lesion="gone", note="still here")
    assert (kept["status"], kept["context"]["lesion"], kept["context"]["note"]) == (201, None, "still here")


def test_account_deleted_in_mid_upload(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    server.stand_in.delay_s = 5  # longer than a slow machine takes to delete the account
    answers: list[dict[str, Any]] = []
    said: tuple[dict[str, str], ...] = ({}, {"lesion": "x"})
    uploads = [
        threading.Thread(target=lambda n=n, one=one: answers.append(send(member, jpegs[n], **one)))
        for n, one in enumerate(said)
    ]
    for upload in uploads:
        upload.start()
    time.sleep(0.5)
    other = Browser(server.url)
    other.client.cookies = member.client.cookies
    deleted = other.post("/profile/delete", page="/profile", password=PASSWORD)
    assert (deleted.status_code, deleted.headers["location"]) == (303, "/")
    for upload in uploads:
        upload.join()
    assert [answer["status"] for answer in answers] == [401, 401]


@pytest.mark.parametrize("statement", ["DELETE FROM users", "UPDATE users SET disabled_at = now()"])
def test_account_gone_in_mid_login(
    member: Browser, server: Server, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = server.services().users
    log_in = users.log_in

    async def log_in_and_vanish(email: str, password: str) -> object:
        found = await log_in(email, password)
        await asyncio.to_thread(execute, server, f"{statement} WHERE email = $1", email)
        return found

    monkeypatch.setattr(users, "log_in", log_in_and_vanish)
    visitor = Browser(server.url)
    visitor.email = member.email
    refused = visitor.log_in()
    assert (refused.status_code, "This account was deleted or disabled." in refused.text) == (401, True)
    assert visitor.get("/upload").status_code == 303


def test_keys_of_one_name_at_once_are_one(server: Server) -> None:
    async def create_all() -> list[str | BaseException]:
        database = Database(str(server.settings.database_url))
        try:
            owner, keys = await Users(database).register(new_email(), PASSWORD), Keys(database)
            attempts = (keys.create(owner.user_id, "gateway") for _ in range(8))
            return await asyncio.gather(*attempts, return_exceptions=True)
        finally:
            await database.close()

    made = asyncio.run(create_all())
    kinds = [type(one) for one in made]
    assert (kinds.count(str), kinds.count(Conflict)) == (1, 7)


def test_nothing_is_made_for_a_result_that_is_not_there(member: Browser) -> None:
    path = "/v1/predictions/00000000-0000-0000-0000-000000000000"
    assert member.client.patch(path, json={"lesion": "ghost"}).status_code == 404
    assert "ghost" not in member.get("/lesions").text


def test_names_that_look_the_same_are_one_lesion(member: Browser, jpegs: list[bytes]) -> None:
    send(member, jpegs[0], lesion="Llu\u00efsa")
    send(member, jpegs[1], lesion="Llui\u0308sa")
    assert len(set(re.findall(r'href="/lesions/([0-9a-f-]+)"', member.get("/lesions").text))) == 1


def test_many_images_of_one_key_at_once_are_one_lease(server: Server, jpegs: list[bytes]) -> None:
    headers = {"Authorization": f"Bearer {new_key(server.settings)}", "Content-Type": "image/jpeg"}

    async def send_all() -> list[int]:
        limits = httpx.Limits(max_connections=120)
        async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers) as client:

            async def one(number: int) -> int:
                key = {"Idempotency-Key": str(number)}
                return (await client.post(f"{server.url}/v1/predictions", content=jpegs[0], headers=key)).status_code

            return await asyncio.gather(*map(one, range(120)))

    assert asyncio.run(send_all()) == [201] * 120


def test_abstained_results_have_no_figures_in_the_csv_and_come_last(
    member: Browser, server: Server, jpegs: list[bytes]
) -> None:
    for number, data in enumerate(jpegs):
        result = send(member, data, f"{number}.jpg")
        if number == 0:
            query = "UPDATE predictions SET abstained = true, probabilities = '{0,0,1,1}' WHERE id = $1::text::uuid"
            execute(server, query, result["id"])
    assert "\r\n0.jpg,,,,," in member.get("/history.csv").text
    names = re.findall(r">(\d\.jpg)</a>", member.get("/history?sort=melanoma").text)
    assert (len(names), names[-1]) == (4, "0.jpg")


@pytest.mark.parametrize("path", ["/v1/predictions", "/history", "/history.csv"])
def test_last_day_of_all(member: Browser, path: str) -> None:
    assert member.get(f"{path}?until=9999-12-31&since=0001-01-01").status_code == 200


@pytest.mark.parametrize("query", ["?search=%00", "/audit?before=99999999999999999999", "/audit?before=-5"])
def test_odd_questions_of_an_administrator(member: Browser, server: Server, query: str) -> None:
    execute(server, "UPDATE users SET role = 'admin' WHERE email = $1", member.email)
    assert member.get(f"/admin{query}").status_code in (200, 422)


def test_hanging_mail_server_holds_up_nobody(start: Callable[..., Server], jpegs: list[bytes]) -> None:
    silent = http.server.socketserver.TCPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler, False)
    silent.server_bind()
    silent.server_activate()  # takes connections, and never says a word
    url = f"smtp://127.0.0.1:{silent.server_address[1]}"
    server = start(smtp_url=SecretStr(url), public_url="http://127.0.0.1:1")
    members = [Browser(server.url) for _ in range(8)]
    for member in members:
        member.register()
        Browser(server.url).post("/forgot", email=member.email)
    began = time.monotonic()
    late = Browser(server.url)
    late.email = members[0].email
    assert late.log_in().status_code == 303
    files = {"file": ("a.jpg", jpegs[0])}
    token = {"X-CSRF-Token": members[0].csrf("/upload")}
    assert members[0].client.post("/v1/predictions", files=files, headers=token).status_code == 201
    assert time.monotonic() - began < 10
    silent.server_close()


def test_expired_results_go_although_the_schema_came_late(
    cluster: Cluster, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.execute("CREATE DATABASE derm_late")
    called = threading.Event()
    expire = retention.expire

    async def noted(database: Any) -> int:
        found = await expire(database)
        called.set()
        return found

    monkeypatch.setattr(retention, "_EVERY_S", 0.2)
    monkeypatch.setattr(retention, "expire", noted)
    server = start(database_url=cluster.url("derm_late"))
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    migrate(cluster.url("derm_late"))
    assert called.wait(10)
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_schema_of_another_version_is_not_ready(cluster: Cluster, start: Callable[..., Server]) -> None:
    url = cluster.create()
    cluster.execute(
        "UPDATE alembic_version SET version_num = '0001'", url.split("/@/")[-1].split("@/")[-1].split("?")[0]
    )
    answer = httpx.get(f"{start(database_url=url).url}/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")


def test_empty_key_file_is_refused_and_a_kept_one_is_read(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).touch()
    with pytest.raises(StartupError, match="holds no key"):
        Vault.of(Settings(state_dir=tmp_path))
    (tmp_path / KEY_FILE).write_text("k" * 43)
    sealed = Vault.of(Settings(state_dir=tmp_path)).seal(b"x", "purpose")
    assert Vault("k" * 43).open(sealed, "purpose") == b"x"


@pytest.mark.parametrize("junk", [b"{}", b"[]", b"null", b"<html>"])
def test_sign_on_recovers_from_junk(start: Callable[..., Server], junk: bytes) -> None:
    answers = {"junk": True}

    class Provider(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about = {"issuer": base, "authorization_endpoint": f"{base}/a", "token_endpoint": f"{base}/t"}
            body = junk if answers["junk"] else json.dumps(about | {"jwks_uri": f"{base}/j"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    provider = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    base = f"http://127.0.0.1:{provider.server_port}"
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    server = start(oidc_issuer=base, oidc_client_id="dermserve")
    assert Browser(server.url).get("/login/sign-on").status_code == 503
    answers["junk"] = False
    assert Browser(server.url).get("/login/sign-on").status_code == 302
    provider.shutdown()
