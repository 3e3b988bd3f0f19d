"""What somebody tries who wants in: forged addresses, links, mail servers, sessions, guesses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import httpx
import pytest

from dermserve.errors import RequestInvalid
from frontend.database import Database
from frontend.identity import passwords
from frontend.mail import LOG_FILE
from frontend.retention import expire
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, execute, new_email
from tests.frontend.test_identity import NEW, again, code, letters, mailed_link, second_step

__all__ = ["letters"]  # a fixture

EVIL = "evil.example"


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    yield browser
    browser.client.close()


def test_mailed_link_leads_here_whatever_the_request_calls_the_server(member: Browser, server: Server) -> None:
    stranger = again(member)
    stranger.client.headers["Host"] = EVIL
    stranger.post("/forgot", email=member.email)
    mailed_link(server, member.email)
    text = (server.settings.state_dir / LOG_FILE).read_text()
    assert EVIL not in text
    assert f"{server.url}/reset#" in text


def test_session_that_stands_idle_ends(start: Callable[..., Server]) -> None:
    server = start(session_idle_minutes=30, session_hours=1)
    visitor = Browser(server.url)
    visitor.register()

    def minutes_ago(minutes: int) -> float:
        """Let that much time pass since the last request; minutes that are left then."""
        mine = "FROM users WHERE users.id = user_id AND email = $1"
        past = "created_at = web_sessions.created_at - $2 * interval '1 min', expires_at = expires_at - $2 * interval '1 min'"
        execute(server, f"UPDATE web_sessions SET {past} {mine}", visitor.email, minutes)
        visitor.get("/history")
        [row] = execute(
            server,
            f"SELECT extract(epoch FROM expires_at - now()) AS s {mine.replace('FROM', 'FROM web_sessions,')}",
            visitor.email,
        )
        return float(row["s"]) / 60

    assert 29 < minutes_ago(20) <= 30, "a request gives it another half hour"
    assert 14 < minutes_ago(25) <= 15, "but never more than its hour"
    assert visitor.get("/history").status_code == 200
    minutes_ago(16)
    assert visitor.get("/history").status_code == 303


def test_session_alone_sets_up_no_second_factor(member: Browser) -> None:
    for password in ("", "not the password"):
        refused = member.post("/profile/second-factor/offer", page="/profile", password=password)
        assert (refused.status_code, "otpauth" in refused.text or 'class="qr"' in refused.text) == (403, False)
    assert again(member).log_in().status_code == 303


def test_second_factor_ends_sessions_that_gave_no_code(member: Browser) -> None:
    other = again(member)
    other.log_in()
    page = member.post("/profile/second-factor/offer", page="/profile", password=PASSWORD).text
    letters = page.split('class="secret">')[1].split("<")[0].replace(" ", "")
    assert member.post("/profile/second-factor/on", page="/profile", code=code(letters)).status_code == 303
    assert other.get("/history").status_code == 303
    assert member.get("/history").status_code == 200


def test_mailed_link_does_not_get_around_the_second_factor(member: Browser, server: Server, letters: str) -> None:
    stranger = again(member)
    stranger.post("/forgot", email=member.email)
    assert stranger.post("/reset", token=mailed_link(server, member.email), password=NEW).status_code == 303
    asked = stranger.log_in(NEW)
    assert (asked.status_code, 'name="challenge"' in asked.text) == (200, True)
    assert stranger.get("/history").status_code == 303
    assert second_step(stranger, code(letters), NEW).status_code == 303


@pytest.mark.parametrize(
    "password",
    [
        "1qaz2wsx3edc",
        "1QAZ2WSX3EDC",
        "correcthorsebatterystaple",
        "barcelona1992",
        "iloveyousomuch",
        "short      \u3000 ",
        "Administrator",
        "passwordpassword",
        "abcdabcdabcd",
        "Melanoma2026!",
        "Ana.Perez-2026!!",
        "ｍｅｌａｎｏｍａ2026",
    ],
)
def test_password_that_a_guesser_tries_first(password: str) -> None:
    with pytest.raises(RequestInvalid, match="too easy to guess"):
        passwords.check("ana.perez@clinic.example", password)


@pytest.mark.parametrize(
    "password", [PASSWORD, NEW, "829104773651", "melanoma and other troubles", "ana's red bicycle"]
)
def test_password_of_any_composition(password: str) -> None:
    passwords.check("ana.perez@clinic.example", password)


def guesses(member: Browser, addresses: Iterable[str]) -> list[int]:
    """Statuses of wrong passwords that a proxy passes on from these addresses."""
    found = []
    for address in addresses:
        guesser = again(member)
        guesser.client.headers["X-Forwarded-For"] = address
        found.append(guesser.log_in("a wrong guess").status_code)
    return found


def test_network_is_one_guesser_however_many_addresses_it_has(member: Browser) -> None:
    one = (f"2001:db8:0:7:{number:x}::1" for number in range(1, 13))
    assert guesses(member, one) == [401] * 10 + [429] * 2
    assert guesses(member, ["2001:db8:0:8::1", "192.0.2.1", "192.0.2.2"]) == [401] * 3
    assert again(member).log_in().status_code == 303, "the owner is not locked out"


def test_mailbox_is_not_filled_from_many_addresses(member: Browser) -> None:
    statuses = []
    for number in range(7):
        stranger = again(member)
        stranger.client.headers["X-Forwarded-For"] = f"198.51.100.{number}"
        statuses.append(stranger.post("/forgot", email=member.email).status_code)
    assert statuses == [200] * 5 + [429] * 2
    assert again(member).post("/forgot", email=new_email()).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predictions", "/login", "/metrics"])
def test_no_other_site_may_read_an_answer(server: Server, path: str) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        answer = httpx.request(method, f"{server.url}{path}", headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_only_the_methods_of_a_route(member: Browser) -> None:
    for method in ("TRACE", "PUT", "CONNECT"):
        assert member.client.request(method, "/profile").status_code == 405
    overridden = member.client.get("/profile/delete", headers={"X-HTTP-Method-Override": "POST"})
    assert overridden.status_code == 405


def test_strangers_json_is_not_read_to_its_end(server: Server, api: httpx.Client, jpegs: list[bytes]) -> None:
    created = api.post("/v1/predictions", content=jpegs[0], headers={"Content-Type": "image/jpeg"}).json()
    path, kind = f"/v1/predictions/{created['id']}", {"Content-Type": "application/json"}
    long = b'{"note": "' + b"a" * 100_000 + b'"}'
    for body in (long, iter([long[:50_000], long[50_000:]])):
        refused = httpx.patch(server.url + path, content=body, headers=kind)
        assert (refused.status_code, refused.json()["code"]) == (413, "image_too_large")
    assert httpx.patch(server.url + path, json={"note": "x"}).status_code == 401
    assert api.patch(path, json={"note": "seen twice"}).json()["context"]["note"] == "seen twice"


def test_log_of_the_database_names_nobody(
    member: Browser, server: Server, cluster: Cluster, jpegs: list[bytes]
) -> None:
    assert again(member).post("/register", email=member.email, password=PASSWORD).status_code == 409
    for number, name in enumerate(("left arm of A", "right arm of A")):
        result = member.upload(jpegs[number]).json()["id"]
        member.post(f"/predictions/{result}/context", page="/profile", lesion=name)
    lesion = member.get("/lesions").text.split('href="/lesions/')[1].split('"')[0]
    statuses = [
        member.post(f"/lesions/{lesion}", page="/profile", name=f"{side} arm of A").status_code
        for side in ("left", "right")
    ]
    assert sorted(statuses) == [303, 409]
    execute(server, "SELECT 1")
    written = cluster.log.read_text()
    assert "database system is ready" in written
    assert not [secret for secret in (member.email, "arm of A") if secret in written]


def test_names_of_lesions_are_kept_no_longer_than_results(
    start: Callable[..., Server], cluster: Cluster, jpegs: list[bytes]
) -> None:
    server = start(database_url=cluster.create())
    inside, outside = Browser(server.url), Browser(server.url)
    for browser in (inside, outside):
        browser.register()
        for number, lesion in enumerate(("old", "seen again", "new")):
            result = browser.upload(jpegs[number]).json()["id"]
            browser.post(f"/predictions/{result}/context", page="/profile", lesion=lesion)
    hospital = "INSERT INTO organisations (id, name, retention_days) VALUES (gen_random_uuid(), 'A', 30) RETURNING id"
    [row] = execute(server, hospital)
    execute(server, "UPDATE users SET organisation_id = $1 WHERE email = $2", row["id"], inside.email)
    execute(server, "UPDATE lesions SET created_at = now() - interval '31 days' WHERE name != 'new'")
    named = "(SELECT id FROM lesions WHERE name IN ('old', 'new'))"
    execute(server, f"UPDATE predictions SET created_at = now() - interval '31 days' WHERE lesion_id IN {named}")

    async def run() -> int:
        database = Database(str(server.settings.database_url))
        try:
            return await expire(database)
        finally:
            await database.close()

    assert asyncio.run(run()) == 2
    left = "SELECT name FROM lesions JOIN users ON users.id = owner_id WHERE email = $1 ORDER BY name"
    assert [row["name"] for row in execute(server, left, inside.email)] == ["new", "seen again"]
    assert len(execute(server, left, outside.email)) == 3


def test_cookie_of_a_language_behind_tls(start: Callable[..., Server]) -> None:
    server = start(public_url="https://derm.example")
    cookie = httpx.get(f"{server.url}/language/ca").headers["set-cookie"]
    assert cookie.startswith("__Host-derm_language=ca;")
    assert all(attribute in cookie for attribute in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"))
    page = httpx.get(f"{server.url}/about", headers={"Cookie": cookie.partition(";")[0]}).text
    assert '<html lang="ca">' in page
