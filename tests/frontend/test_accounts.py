"""Registration, login, sessions, CSRF, API keys: through the pages, as a browser would."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from frontend.identity.passwords import Passwords
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Cluster, Server, execute, new_email


@pytest.fixture
def browser(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    yield browser
    browser.client.close()


@pytest.fixture
def member(browser: Browser) -> Browser:
    assert browser.register().status_code == 303
    return browser


def test_register_log_out_log_in(browser: Browser) -> None:
    registered = browser.register()
    assert (registered.status_code, registered.headers["location"]) == (303, "/upload")
    assert browser.email in browser.get("/upload").text
    left = browser.post("/logout", page="/upload")
    assert (left.status_code, left.headers["location"]) == (303, "/")
    assert browser.get("/upload").headers["location"] == "/login?next=/upload"
    back = browser.log_in(next="/history")
    assert (back.status_code, back.headers["location"]) == (303, "/history")
    assert browser.get("/history").status_code == 200


@pytest.mark.parametrize(
    ("email", "password", "words"),
    [
        ("not an address", PASSWORD, "complete e-mail address"),
        ("a@b@c", PASSWORD, "complete e-mail address"),
        ("service:image.gateway@clinic.example", PASSWORD, "complete e-mail address"),
        ("a,admin@clinic.example", PASSWORD, "complete e-mail address"),
        ("a<admin@clinic.example>", PASSWORD, "complete e-mail address"),
        ("adm\u200bin@clinic.example", PASSWORD, "complete e-mail address"),
        ("x@clinic.example", "eleven char", "at least 12"),
        ("x@clinic.example", "a" * 129, "at most 128"),
        ("x@clinic.example", "a" * 20, "too easy"),
        ("long.name@clinic.example", "long.name@clinic.example", "too easy"),
    ],
)
def test_registration_refused(browser: Browser, email: str, password: str, words: str) -> None:
    response = browser.post("/register", email=email, password=password)
    assert response.status_code == 422
    assert words in response.text
    assert browser.get("/upload").status_code == 303


def test_address_is_taken_in_any_spelling(member: Browser, server: Server) -> None:
    other = Browser(server.url)
    response = other.post("/register", email=f" {member.email.upper()} ", password=PASSWORD)
    assert response.status_code == 409
    assert "account with this address already" in response.text


def test_wrong_password_and_unknown_address_look_alike(member: Browser, server: Server) -> None:
    wrong = Browser(server.url)
    wrong.email = member.email
    unknown = Browser(server.url)
    pages = [browser.log_in("not the password at all") for browser in (wrong, unknown)]
    assert [page.status_code for page in pages] == [401, 401]
    assert "The address or the password is not right" in pages[0].text
    assert (
        pages[0].text.replace(wrong.email, "").split("csrf_token")[0]
        == pages[1].text.replace(unknown.email, "").split("csrf_token")[0]
    )


@pytest.mark.parametrize("email", ["", "a\x00@clinic.example", "service", "ｘ" * 300])
def test_login_with_no_address_at_all(browser: Browser, email: str) -> None:
    browser.email = email
    assert browser.log_in().status_code == 401


def test_unknown_user_costs_the_same_work() -> None:
    async def measure() -> tuple[float, float]:
        passwords = Passwords()
        stored = await passwords.hash(PASSWORD)
        await passwords.verify("warm up the dummy", None)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(5):
            for known in (True, False):
                started = time.perf_counter()
                assert not await passwords.verify("wrong password", stored if known else None)
                times[known].append(time.perf_counter() - started)
        return statistics.median(times[True]), statistics.median(times[False])

    known, unknown = asyncio.run(measure())
    assert unknown > known / 2


def test_session_is_rotated_at_login(member: Browser, server: Server) -> None:
    victim = Browser(server.url)
    victim.email = member.email
    victim.get("/login")
    planted = victim.cookie
    assert planted
    assert victim.log_in().status_code == 303
    assert victim.cookie != planted
    thief = httpx.get(f"{server.url}/upload", cookies={"derm_session": planted})
    assert thief.status_code in (303, 401)


def test_session_ends_for_good_at_logout(member: Browser, server: Server) -> None:
    token = member.cookie
    assert token
    assert httpx.get(f"{server.url}/v1/predictions", cookies={"derm_session": token}).status_code == 200
    member.post("/logout", page="/upload")
    assert member.cookie is None
    assert httpx.get(f"{server.url}/v1/predictions", cookies={"derm_session": token}).status_code == 401


def test_session_expires(member: Browser, server: Server) -> None:
    assert member.get("/history").status_code == 200
    execute(
        server,
        "UPDATE web_sessions SET expires_at = now() FROM users WHERE users.id = user_id AND email = $1",
        member.email,
    )
    assert member.get("/history").status_code == 303


def test_cookie_attributes(browser: Browser) -> None:
    cookie = browser.register().headers["set-cookie"]
    assert cookie.startswith("derm_session=")
    for attribute in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"):
        assert attribute in cookie
    assert "Secure" not in cookie


def test_cookie_and_hsts_behind_tls(start: Callable[..., Server]) -> None:
    server = start(public_url="https://derm.example")
    response = httpx.get(f"{server.url}/login")
    assert response.headers["set-cookie"].startswith("__Host-derm_session=")
    assert "Secure" in response.headers["set-cookie"]
    assert response.headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize("path", ["/login", "/register", "/logout", "/keys", "/forgot", "/reset", "/profile/delete"])
@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_forms_need_the_csrf_token(member: Browser, path: str, token: str | None) -> None:
    fields = {"email": member.email, "password": PASSWORD, "name": "k"} | (
        {} if token is None else {"csrf_token": token}
    )
    assert member.client.post(path, data=fields).status_code == 403
    assert member.get("/upload").status_code == 200


def test_csrf_token_of_another_session_is_refused(member: Browser, server: Server) -> None:
    other = Browser(server.url)
    other.register()
    response = member.client.post("/keys", data={"csrf_token": other.csrf("/keys"), "name": "k"})
    assert response.status_code == 403


def test_other_site_is_refused_even_with_the_token(member: Browser) -> None:
    fields = {"csrf_token": member.csrf("/keys"), "name": "k"}
    response = member.client.post("/keys", data=fields, headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403


def test_api_by_session_needs_the_csrf_header(member: Browser, jpegs: list[bytes]) -> None:
    bare = member.client.post("/v1/predictions", content=jpegs[0], headers={"Content-Type": "image/jpeg"})
    assert (bare.status_code, bare.json()["code"]) == (403, "forbidden")
    created = member.upload(jpegs[0])
    assert created.status_code == 201
    url = f"/v1/predictions/{created.json()['id']}"
    assert member.client.delete(url).status_code == 403
    assert member.client.delete(url, headers={"X-CSRF-Token": member.csrf("/upload")}).status_code == 204


def test_people_go_before_machines(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    member.upload(jpegs[0])
    assert server.stand_in.calls == [False]


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "evil", "/\t/evil.example"]
)
def test_login_leads_nowhere_else(member: Browser, server: Server, target: str) -> None:
    visitor = Browser(server.url)
    visitor.email = member.email
    assert visitor.log_in(next=target).headers["location"] == "/upload"


def test_guessing_is_throttled_without_locking_others_out(member: Browser, start: Callable[..., Server]) -> None:
    server = start()
    guesser = Browser(server.url)
    guesser.email = member.email
    assert [guesser.log_in(f"wrong guess number {n}").status_code for n in range(10)] == [401] * 10
    refused = guesser.log_in()
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 900
    assert "Too many attempts" in refused.text
    other = Browser(server.url)
    assert other.register().status_code == 303


def test_registrations_of_one_address_are_limited(start: Callable[..., Server], cluster: Cluster) -> None:
    server = start(registration_limit=3, database_url=cluster.create())
    assert [Browser(server.url).register().status_code for _ in range(5)] == [303] * 3 + [429] * 2


def test_api_key_life(member: Browser, server: Server) -> None:
    key = member.create_key("  image   gateway ")
    assert key.startswith("derm_")
    assert key not in member.get("/keys").text
    assert "image gateway" in member.get("/keys").text
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/v1/predictions", headers=headers).status_code == 200
    assert "never" not in member.get("/keys").text
    key_id = member.get("/keys").text.split('action="/keys/')[1].split("/")[0]

    stranger = Browser(server.url)
    stranger.register()
    assert stranger.post(f"/keys/{key_id}/revoke", page="/keys").status_code == 404
    assert member.post(f"/keys/{key_id}/revoke", page="/keys").status_code == 303
    assert httpx.get(f"{server.url}/v1/predictions", headers=headers).status_code == 401


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\x00b"])
def test_unusable_key_name(member: Browser, name: str) -> None:
    assert member.post("/keys", name=name, read="1", password=PASSWORD).status_code == 422


def test_nothing_in_the_database_opens_a_door(member: Browser, server: Server) -> None:
    key = member.create_key("secret")
    [user] = execute(server, "SELECT id, password_hash FROM users WHERE email = $1", member.email)
    assert user["password_hash"].startswith("$argon2id$")
    sessions = execute(server, "SELECT * FROM web_sessions WHERE user_id = $1", user["id"])
    keys = execute(server, "SELECT * FROM api_keys WHERE user_id = $1", user["id"])
    stored = repr([tuple(row) for row in sessions + keys])
    assert key not in stored
    assert member.cookie
    assert member.cookie not in stored
    hexed = sessions[0]["token_sha256"].hex()
    assert httpx.get(f"{server.url}/v1/predictions", cookies={"derm_session": hexed}).status_code == 401


def test_form_fields_are_bounded(browser: Browser) -> None:
    fields = {"csrf_token": browser.csrf("/login"), "email": new_email(), "password": "x" * 100_000}
    assert browser.client.post("/login", data=fields).status_code == 413
    response = browser.client.post("/login", json=fields)
    assert response.status_code == 422
