"""Nobody reaches what is another's: every route that names an object, tried by a stranger, a colleague and an engineer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute

from frontend import api, batch, health, pages, stow
from frontend.access import Role
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute

# Every route with an object's id in its path, and what stands for the id: of another's result, lesion, key or session.
OBJECTS = {
    ("GET", "/v1/predictions/{prediction_id:uuid}"): "result",
    ("PATCH", "/v1/predictions/{prediction_id:uuid}"): "result",
    ("DELETE", "/v1/predictions/{prediction_id:uuid}"): "result",
    ("GET", "/predictions/{prediction_id:uuid}"): "result",
    ("GET", "/predictions/{prediction_id:uuid}/fragment"): "result",
    ("POST", "/predictions/{prediction_id:uuid}/context"): "result",
    ("POST", "/predictions/{prediction_id:uuid}/delete"): "result",
    ("GET", "/lesions/{lesion_id:uuid}"): "lesion",
    ("POST", "/lesions/{lesion_id:uuid}"): "lesion",
    ("POST", "/lesions/{lesion_id:uuid}/delete"): "lesion",
    ("POST", "/keys/{key_id:uuid}/revoke"): "key",
    ("POST", "/profile/sessions/{session_id:uuid}/revoke"): "session",
    ("POST", "/admin/organisations/{organisation_id:uuid}"): "organisation",
    ("POST", "/admin/members/{user_id:uuid}"): "user",
}
# An image's study is what its sender calls it: there is nothing under it to be read.
NO_OBJECTS = {"/dicomweb/studies/{study}", "/samples/{number}.jpg", "/language/{language}"}
ADMIN_PAGES = [("GET", "/admin"), ("POST", "/admin/organisations")]
AUDIT_PAGES = [("GET", "/admin/audit"), ("POST", "/admin/audit/verify")]


class Owner(NamedTuple):
    browser: Browser
    ids: dict[str, str]


def role(server: Server, browser: Browser, name: Role) -> None:
    execute(server, "UPDATE users SET role = $2 WHERE email = $1", browser.email, name)


@pytest.fixture(scope="module")
def organisation(running: Server) -> str:
    [row] = execute(
        running, "INSERT INTO organisations (id, name) VALUES (gen_random_uuid(), gen_random_uuid()) RETURNING id"
    )
    return str(row["id"])


@pytest.fixture(scope="module")
def owner(running: Server, organisation: str, jpegs: list[bytes]) -> Owner:
    browser = Browser(running.url)
    browser.register()
    [user] = execute(
        running,
        "UPDATE users SET organisation_id = $2::text::uuid WHERE email = $1 RETURNING id",
        browser.email,
        organisation,
    )
    result = browser.upload(jpegs[0], name="secret.jpg").json()["id"]
    browser.post(f"/predictions/{result}/context", page="/profile", lesion="hidden spot", note="private")
    browser.create_key("hidden key")

    def one(query: str) -> str:
        return str(execute(running, query, user["id"])[0]["id"])

    ids = {
        "result": result,
        "lesion": one("SELECT id FROM lesions WHERE owner_id = $1"),
        "key": one("SELECT id FROM api_keys WHERE user_id = $1"),
        "session": one("SELECT id FROM web_sessions WHERE user_id = $1"),
        "organisation": organisation,
        "user": str(user["id"]),
    }
    return Owner(browser, ids)


@pytest.fixture(params=["stranger", "colleague", "engineer", "hospital", "key"])
def other(request: pytest.FixtureRequest, server: Server, organisation: str) -> Iterator[httpx.Client]:
    """Somebody else, who sends a good CSRF token (or a key) with every request."""
    browser = Browser(server.url)
    browser.register()
    if request.param == "colleague":
        query = "UPDATE users SET organisation_id = $2::text::uuid WHERE email = $1"
        execute(server, query, browser.email, organisation)
    if request.param in ("engineer", "hospital"):
        role(server, browser, Role(request.param))
    browser.client.headers["X-CSRF-Token"] = browser.csrf("/profile")
    if request.param == "key":
        key = browser.create_key()
        browser.client.cookies.clear()
        browser.client.headers["Authorization"] = f"Bearer {key}"
    yield browser.client
    browser.client.close()


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    if method == "POST":
        fields = {"csrf_token": client.headers.get("X-CSRF-Token", ""), "name": "x", "role": "admin", "lesion": "x"}
        return client.post(path, data=fields)
    return client.request(method, path, json={"note": "x"} if method == "PATCH" else None)


def test_the_table_holds_every_route_that_names_an_object(server: Server) -> None:
    del server
    named = {
        (method, route.path)
        for router in (api.router, batch.router, stow.router, health.router, *pages.ROUTERS)
        for route in router.routes
        if isinstance(route, APIRoute) and "{" in route.path and route.path not in NO_OBJECTS
        for method in route.methods
    }
    assert named == set(OBJECTS)


@pytest.mark.parametrize(("method", "route"), OBJECTS)
def test_nobody_reaches_what_is_anothers(owner: Owner, other: httpx.Client, method: str, route: str) -> None:
    path = re.sub(r"\{\w+:uuid\}", owner.ids[OBJECTS[method, route]], route)
    answer = ask(other, method, path)
    page = "/v1/" not in route
    allowed = (303, 403, 404) if page and "Authorization" in other.headers else (403, 404)
    assert answer.status_code in allowed, answer.text
    assert answer.headers.get("location", "/login").startswith("/login")
    assert "secret.jpg" not in answer.text
    assert "hidden" not in answer.text


def test_the_owner_still_has_everything(owner: Owner, server: Server) -> None:
    result = owner.browser.get(f"/v1/predictions/{owner.ids['result']}").json()
    assert result["context"] == {"lesion": "hidden spot", "body_site": None, "note": "private"}
    assert "hidden key" in owner.browser.get("/keys").text
    [row] = execute(server, "SELECT role, disabled_at FROM users WHERE email = $1", owner.browser.email)
    assert (row["role"], row["disabled_at"]) == ("clinician", None)


@pytest.mark.parametrize(
    "path", ["/v1/predictions", "/history", "/history.csv", "/history.json", "/lesions", "/lesions/named"]
)
def test_lists_and_exports_hold_nothing_of_anothers(owner: Owner, other: httpx.Client, path: str) -> None:
    text = other.get(path).text
    assert owner.ids["result"] not in text
    assert owner.ids["lesion"] not in text


def test_filter_by_anothers_lesion_finds_nothing(owner: Owner, other: httpx.Client) -> None:
    assert other.get("/v1/predictions", params={"lesion": owner.ids["lesion"]}).json()["items"] == []


@pytest.mark.parametrize("typed", ["hidden spot", "hidden", ""])
def test_typed_name_finds_nothing_of_anothers(owner: Owner, other: httpx.Client, typed: str) -> None:
    answer = other.get("/lesions/named", headers={"X-Lesion": typed, "Accept": "application/json"})
    if answer.status_code == 200:
        assert (answer.json()["known"], answer.json()["like"]) == (False, [])
    else:
        assert answer.status_code == 401
    assert owner.browser.client.get("/lesions/named", headers={"X-Lesion": typed}).json()["like"] == ["hidden spot"]


def test_search_finds_nothing_by_anothers_lesion(owner: Owner, other: httpx.Client) -> None:
    assert other.get("/v1/predictions", params={"search": "hidden spot"}).json()["items"] == []
    assert len(owner.browser.client.get("/v1/predictions", params={"search": "hidden spot"}).json()["items"]) == 1


def test_own_result_cannot_be_put_into_anothers_lesion(owner: Owner, server: Server, jpegs: list[bytes]) -> None:
    browser = Browser(server.url)
    browser.register()
    mine = browser.upload(jpegs[1]).json()["id"]
    browser.post(f"/predictions/{mine}/context", page="/profile", lesion="hidden spot")
    assert owner.ids["lesion"] not in browser.get("/lesions").text
    assert mine not in owner.browser.get(f"/lesions/{owner.ids['lesion']}").text


def test_compare_shows_nothing_of_anothers(owner: Owner, server: Server, jpegs: list[bytes]) -> None:
    browser = Browser(server.url)
    browser.register()
    mine = browser.upload(jpegs[1]).json()["id"]
    assert browser.get(f"/compare?id={mine}&id={owner.ids['result']}").status_code == 404


@pytest.mark.parametrize(("method", "path"), [*ADMIN_PAGES, *AUDIT_PAGES])
@pytest.mark.parametrize("who", list(Role))
def test_who_runs_the_place(server: Server, who: Role, method: str, path: str) -> None:
    browser = Browser(server.url)
    browser.register()
    role(server, browser, who)
    browser.client.headers["X-CSRF-Token"] = browser.csrf("/profile")
    good = who == Role.ADMIN or (who == Role.ENGINEER and "audit" in path)
    answer = ask(browser.client, method, path)
    assert answer.status_code in ((200, 303, 409) if good else (403,)), answer.text
