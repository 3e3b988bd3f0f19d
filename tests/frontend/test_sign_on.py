"""A hospital's sign-on, against a real OpenID provider on this machine."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import parse_qs, urlsplit

import httpx
import oidc_provider_mock
import pytest
from authlib.integrations.starlette_client import StarletteOAuth2App
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import SecretStr

from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute, new_email


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with oidc_provider_mock.run_server_in_thread() as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture
def hospital(start: Callable[..., Server], provider: str) -> Server:
    return start(
        oidc_issuer=provider,
        oidc_client_id="dermserve",
        oidc_client_secret=SecretStr("x" * 40),
        oidc_name="St. Elsewhere",
    )


def known(provider: str, **claims: object) -> str:
    """The subject of a new person at the provider."""
    subject = secrets.token_hex(8)
    assert httpx.put(f"{provider}/users/{subject}", json=claims).status_code == 204
    return subject


def allow(address: str, subject: str) -> str:
    """What the provider sends the browser back to, once the person has agreed."""
    answer = httpx.post(address, data={"sub": subject})
    assert answer.status_code in (302, 303), answer.text
    return answer.headers["location"]


def sign_on(browser: Browser, subject: str, target: str = "/history") -> httpx.Response:
    away = browser.get(f"/login/sign-on?next={target}")
    return browser.get(allow(away.headers["location"], subject))


def test_first_visit_makes_an_account_and_the_next_finds_it(hospital: Server, provider: str) -> None:
    email = new_email()
    subject = known(provider, email=email.upper(), email_verified=True)
    browser = Browser(hospital.url)
    assert "Log in with St. Elsewhere" in browser.get("/login").text
    back = sign_on(browser, subject)
    assert (back.status_code, back.headers["location"]) == (303, "/history")
    assert email in browser.get("/profile").text
    assert "through your hospital" in browser.get("/profile").text
    again = Browser(hospital.url)
    assert sign_on(again, subject).status_code == 303
    assert len(execute(hospital, "SELECT id FROM users WHERE email = $1", email)) == 1
    password = Browser(hospital.url)
    password.email = email
    assert password.log_in("").status_code == 401


def test_code_is_asked_for_with_pkce(hospital: Server) -> None:
    away = Browser(hospital.url).get("/login/sign-on").headers["location"]
    asked = parse_qs(urlsplit(away).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["response_type"] == ["code"]
    assert all(len(asked[name][0]) > 15 for name in ("state", "nonce", "code_challenge"))


def test_account_with_a_password_is_not_taken_over(hospital: Server, provider: str) -> None:
    owner = Browser(hospital.url)
    owner.register()
    back = sign_on(Browser(hospital.url), known(provider, email=owner.email, email_verified=True))
    assert (back.status_code, "account with this address already" in back.text) == (409, True)


@pytest.mark.parametrize("claims", [{}, {"email": "x@clinic.example", "email_verified": False}])
def test_unconfirmed_address(hospital: Server, provider: str, claims: dict[str, object]) -> None:
    browser = Browser(hospital.url)
    assert sign_on(browser, known(provider, **claims)).status_code == 401
    assert browser.get("/upload").status_code == 303


def test_answer_meant_for_another_browser(hospital: Server, provider: str) -> None:
    victim, attacker = Browser(hospital.url), Browser(hospital.url)
    subject = known(provider, email=new_email(), email_verified=True)
    link = allow(attacker.get("/login/sign-on").headers["location"], subject)
    assert victim.get(link).status_code == 401
    victim.get("/login/sign-on")
    assert victim.get(link).status_code == 401, "the state is of another login"
    assert victim.get("/upload").status_code == 303


def test_code_is_good_once(hospital: Server, provider: str) -> None:
    browser = Browser(hospital.url)
    link = allow(browser.get("/login/sign-on").headers["location"], known(provider, email=new_email()))
    assert browser.get(link).status_code == 303
    assert Browser(hospital.url).get(link).status_code == 401


def test_provider_that_does_not_answer(start: Callable[..., Server]) -> None:
    server = start(oidc_issuer="http://localhost:9", oidc_client_id="dermserve")
    away = Browser(server.url).get("/login/sign-on")
    assert (away.status_code, "sign-on is not answering" in away.text) == (503, True)
    browser = Browser(server.url)
    assert browser.register().status_code == 303


def test_without_a_sign_on_there_is_none(server: Server) -> None:
    browser = Browser(server.url)
    assert "sign-on" not in browser.get("/login").text
    assert [browser.get(f"/login/sign-on{path}").status_code for path in ("", "/callback")] == [404, 404]


def test_disabled_account(hospital: Server, provider: str) -> None:
    email = new_email()
    subject = known(provider, email=email)
    assert sign_on(Browser(hospital.url), subject).status_code == 303
    execute(hospital, "UPDATE users SET disabled_at = now() WHERE email = $1", email)
    assert sign_on(Browser(hospital.url), subject).status_code == 403


def metadata(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let the sign-on say something else of itself when it is read."""
    load = StarletteOAuth2App.load_server_metadata

    async def changed(app: StarletteOAuth2App) -> dict[str, object]:
        read = "_loaded_at" in app.server_metadata
        about: dict[str, object] = await load(app)
        if not read:
            about.update(changes)
        return about

    monkeypatch.setattr(StarletteOAuth2App, "load_server_metadata", changed)


def test_sign_on_that_calls_itself_another_is_not_believed(hospital: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata(monkeypatch, issuer="https://another.example")
    away = Browser(hospital.url).get("/login/sign-on")
    assert (away.status_code, "sign-on is not answering" in away.text) == (503, True)


def unsigned(claims: dict[str, object]) -> str:
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims))
    return b".".join([*parts, b""]).decode()


KEY = RSAKey.generate_key(2048)
OTHER_KEY = RSAKey.generate_key(2048)


def signed(claims: dict[str, object], key: RSAKey = KEY) -> str:
    return jwt.encode({"alg": "RS256"}, claims, key)


@pytest.mark.parametrize(
    ("token", "claims", "status"),
    [
        (signed, {}, 303),
        (unsigned, {}, 401),
        (partial(signed, key=OTHER_KEY), {}, 401),
        (signed, {"iss": "https://another.example"}, 401),
        (signed, {"aud": "another", "azp": "dermserve"}, 401),
        (signed, {"exp": 1}, 401),
        (signed, {"nonce": "of an earlier login"}, 401),
        (signed, {"nonce": None}, 401),
    ],
    ids=["good", "unsigned", "other key", "other issuer", "for another", "old", "replayed", "no nonce"],
)
def test_what_the_sign_on_hands_over_is_checked(
    hospital: Server,
    provider: str,
    monkeypatch: pytest.MonkeyPatch,
    token: Callable[[dict[str, object]], str],
    claims: dict[str, object],
    status: int,
) -> None:
    async def keys(_self: object, **_: object) -> dict[str, object]:
        return {"keys": [KEY.as_dict(private=False)]}

    async def handed_over(_self: object, *_: object, **__: object) -> dict[str, str]:
        now, nonce = int(time.time()), parse_qs(urlsplit(asked).query)["nonce"][0]
        right = {"iss": provider, "sub": subject, "aud": "dermserve", "exp": now + 60, "iat": now, "nonce": nonce}
        all_claims = right | {"email": email, "email_verified": True} | claims
        content = {name: value for name, value in all_claims.items() if value is not None}
        return {"access_token": "x", "token_type": "Bearer", "id_token": token(content)}

    # What it says of itself would allow everything.
    metadata(monkeypatch, id_token_signing_alg_values_supported=["none", "HS256", "RS256"])
    monkeypatch.setattr(StarletteOAuth2App, "fetch_jwk_set", keys)
    monkeypatch.setattr(StarletteOAuth2App, "fetch_access_token", handed_over)
    email = new_email()
    subject = known(provider, email=email)
    browser = Browser(hospital.url)
    asked = browser.get("/login/sign-on").headers["location"]
    assert browser.get(allow(asked, subject)).status_code == status
    assert browser.get("/upload").status_code == (200 if status == 303 else 303)


def test_link_on_another_site_logs_nobody_in(hospital: Server) -> None:
    browser = Browser(hospital.url)
    elsewhere = browser.client.get("/login/sign-on?next=/history", headers={"Sec-Fetch-Site": "cross-site"})
    assert elsewhere.headers["location"] == "/login?next=/history"
    own = browser.client.get("/login/sign-on?next=/history", headers={"Sec-Fetch-Site": "same-origin"})
    assert own.headers["location"].startswith("http://localhost")


def test_cookie_of_a_login_behind_tls(start: Callable[..., Server], provider: str) -> None:
    server = start(oidc_issuer=provider, oidc_client_id="dermserve", public_url="https://derm.example")
    away = Browser(server.url).get("/login/sign-on")
    cookie = away.headers["set-cookie"]
    assert cookie.startswith("__Host-derm_sign_on=")
    assert all(attribute in cookie for attribute in ("Secure", "HttpOnly", "SameSite=lax", "Path=/;"))
    callback = parse_qs(urlsplit(away.headers["location"]).query)["redirect_uri"]
    assert callback == ["https://derm.example/login/sign-on/callback"]
