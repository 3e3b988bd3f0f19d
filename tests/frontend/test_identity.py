"""What users do with their accounts: passwords, second factor, sessions, keys, their data, and the end of it."""

from __future__ import annotations

import email as mail
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.policy import default
from pathlib import Path
from urllib.parse import unquote

import httpx
import pyotp
import pytest

from frontend.identity.users import caller_of
from frontend.mail import LOG_FILE
from frontend.models import User
from tests.frontend.browsing import Browser
from tests.frontend.conftest import PASSWORD, Server, execute

NEW = "another four plain words"


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    yield browser
    browser.client.close()


def again(member: Browser) -> Browser:
    """The same user at another browser, not logged in."""
    other = Browser(str(member.client.base_url))
    other.email = member.email
    return other


def mailed_link(server: Server, to: str) -> str:
    """The token in the last mail to an address; waits for it."""
    path = server.settings.state_dir / LOG_FILE
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for text in reversed(path.read_text().split("\nFrom: ") if path.exists() else []):
            found = mail.message_from_string(text if text.startswith("From: ") else f"From: {text}", policy=default)
            if found["To"] == to:
                link = re.search(r"/reset#(\S+)", found.get_content())
                assert link
                return unquote(link[1])
        time.sleep(0.05)
    raise AssertionError("no mail came")


def test_changed_password_ends_other_sessions(member: Browser) -> None:
    other = again(member)
    other.log_in()
    wrong = member.post("/profile/password", page="/profile", old="not the old one", password=NEW)
    assert (wrong.status_code, "present password is not right" in wrong.text) == (403, True)
    changed = member.post("/profile/password", page="/profile", old=PASSWORD, password=NEW)
    assert changed.status_code == 303
    assert member.get("/upload").status_code == 200
    assert other.get("/upload").status_code == 303
    assert [again(member).log_in(word).status_code for word in (PASSWORD, NEW)] == [401, 303]


def test_forgotten_password(member: Browser, server: Server) -> None:
    stranger = Browser(server.url)
    asked = stranger.post("/forgot", email=member.email)
    unknown = Browser(server.url).post("/forgot", email="nobody@clinic.example")
    assert asked.status_code == unknown.status_code == 200
    assert "a mail with a link is on its way" in asked.text
    assert "a mail with a link is on its way" in unknown.text
    token = mailed_link(server, member.email)
    assert stranger.post("/reset", token=token, password="short").status_code == 422
    assert stranger.post("/reset", token=token, password=NEW).status_code == 303
    assert member.get("/upload").status_code == 303, "every session has ended"
    assert [again(member).log_in(word).status_code for word in (PASSWORD, NEW)] == [401, 303]
    assert stranger.post("/reset", token=token, password=PASSWORD).status_code == 404
    assert token not in repr(execute(server, "SELECT * FROM password_resets"))


def test_link_for_a_password_is_good_for_an_hour(member: Browser, server: Server) -> None:
    stranger = Browser(server.url)
    stranger.post("/forgot", email=member.email)
    token = mailed_link(server, member.email)
    execute(server, "UPDATE password_resets SET expires_at = now()")
    assert stranger.post("/reset", token=token, password=NEW).status_code == 404
    assert again(member).log_in().status_code == 303


def test_mail_file_is_for_its_owner_only(member: Browser, server: Server) -> None:
    Browser(server.url).post("/forgot", email=member.email)
    mailed_link(server, member.email)
    assert (server.settings.state_dir / LOG_FILE).stat().st_mode & 0o777 == 0o600


def code(letters: str, steps: int = 0) -> str:
    return pyotp.TOTP(letters).at(datetime.now(UTC) + timedelta(seconds=30 * steps))


@pytest.fixture
def letters(member: Browser) -> str:
    """The secret of a second factor that was turned on with the code of half a minute ago."""
    page = member.post("/profile/second-factor/offer", page="/profile", password=PASSWORD).text
    found = re.search(r'class="secret">([A-Z2-7 ]+)<', page)
    assert found
    letters = found[1].replace(" ", "")
    assert "<svg" in page
    on = member.post("/profile/second-factor/on", page="/profile", code=code(letters, -1))
    assert on.status_code == 303
    return letters


def second_step(browser: Browser, code: str, password: str = PASSWORD) -> httpx.Response:
    page = browser.log_in(password)
    assert page.status_code == 200
    hidden = dict(re.findall(r'name="(csrf_token|challenge|next)" value="([^"]*)"', page.text))
    return browser.client.post("/login/code", data={**hidden, "code": code})


def test_second_factor_at_login(member: Browser, letters: str) -> None:
    visitor = again(member)
    assert second_step(visitor, "000000" if code(letters) != "000000" else "111111").status_code == 401
    assert visitor.get("/upload").status_code == 303
    right = code(letters)
    assert second_step(visitor, f"{right[:3]} {right[3:]}").status_code == 303
    assert visitor.get("/upload").status_code == 200
    assert second_step(again(member), right).status_code == 401, "a code is good once"


def test_second_factor_is_turned_on_with_the_secret_of_the_code(
    member: Browser, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = member.post("/profile/second-factor/offer", page="/profile", password=PASSWORD).text
    first = page.split('class="secret">')[1].split("<")[0].replace(" ", "")
    factor = server.services().second_factor
    use = factor._use

    async def offered_again_meanwhile(user: User, code: str) -> bool:
        right = await use(user, code)
        await factor.offer(caller_of(user))
        return right

    monkeypatch.setattr(factor, "_use", offered_again_meanwhile)
    refused = member.post("/profile/second-factor/on", page="/profile", code=code(first))
    assert (refused.status_code, "Another picture was shown meanwhile" in refused.text) == (422, True)
    assert first not in refused.text.replace(" ", "")
    assert again(member).log_in().status_code == 303, "no code is asked for that no app can give"


def test_second_factor_can_be_turned_off_with_a_code_only(member: Browser, letters: str) -> None:
    assert member.post("/profile/second-factor/off", page="/profile", code="").status_code == 422
    assert member.post("/profile/second-factor/off", page="/profile", code=code(letters)).status_code == 303
    assert again(member).log_in().status_code == 303


def test_codes_cannot_be_guessed(member: Browser, letters: str) -> None:
    visitor = again(member)
    del letters
    statuses = [second_step(visitor, "1").status_code for _ in range(10)]
    assert statuses[-1] == 429


def test_secret_of_the_second_factor_is_sealed(member: Browser, letters: str, server: Server) -> None:
    [user] = execute(server, "SELECT totp_secret FROM users WHERE email = $1", member.email)
    assert letters.encode() not in user["totp_secret"]


def test_challenge_of_a_login_is_not_made_up(member: Browser, letters: str, server: Server) -> None:
    [user] = execute(server, "SELECT id FROM users WHERE email = $1", member.email)
    visitor = again(member)
    forged = {"csrf_token": visitor.csrf("/login"), "challenge": user["id"].hex, "code": code(letters)}
    assert visitor.client.post("/login/code", data=forged).status_code == 401


def test_sessions_are_listed_and_ended(member: Browser, server: Server) -> None:
    other = again(member)
    other.client.headers["User-Agent"] = "Elsewhere/1.0 <script>"
    other.log_in()
    page = member.get("/profile").text
    assert "Elsewhere/1.0 &lt;script&gt;" in page
    assert page.count("this one") == 1
    [found] = re.findall(r"Elsewhere.*?/profile/sessions/([0-9a-f-]+)/revoke", page, re.DOTALL)
    stranger = Browser(server.url)
    stranger.register()
    assert stranger.post(f"/profile/sessions/{found}/revoke", page="/profile").status_code == 404
    assert member.post(f"/profile/sessions/{found}/revoke", page="/profile").status_code == 303
    assert other.get("/upload").status_code == 303
    assert member.get("/upload").status_code == 200


@pytest.mark.parametrize(
    ("scope", "statuses"), [("predict", (201, 403, 403)), ("read", (403, 200, 403)), ("delete", (403, 403, 204))]
)
def test_key_is_good_for_its_scopes(
    member: Browser, server: Server, jpegs: list[bytes], scope: str, statuses: tuple[int, ...]
) -> None:
    mine = member.upload(jpegs[1]).json()["id"]
    headers = {"Authorization": f"Bearer {member.create_key(**{scope: '1'})}", "Content-Type": "image/jpeg"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        found = (
            client.post("/v1/predictions", content=jpegs[0]).status_code,
            client.get("/v1/predictions").status_code,
            client.delete(f"/v1/predictions/{mine}").status_code,
        )
    assert found == statuses


def test_key_without_a_scope(member: Browser) -> None:
    assert member.post("/keys", name="useless", password=PASSWORD).status_code == 422


def test_key_is_made_for_the_owner_of_the_account_only(member: Browser, server: Server) -> None:
    for password in ("", "not the password"):
        refused = member.post("/keys", name="kept", read="1", password=password)
        assert (refused.status_code, "password is not right" in refused.text) == (403, True)
    execute(server, "UPDATE users SET password_hash = NULL WHERE email = $1", member.email)  # as by a sign-on
    assert member.post("/keys", name="kept", read="1", email="another@clinic.example").status_code == 403
    assert 'class="revoked"' not in member.get("/keys").text
    made = member.post("/keys", name="kept", read="1", email=f" {member.email.upper()} ")
    assert 'id="new-key"' in made.text


def test_password_for_a_key_cannot_be_guessed(member: Browser) -> None:
    token = member.csrf("/keys")
    fields = {"csrf_token": token, "name": "guessed", "read": "1"}
    statuses = [member.client.post("/keys", data={**fields, "password": str(n)}).status_code for n in range(11)]
    assert statuses == [403] * 10 + [429]


def test_form_sent_twice_makes_one_key(member: Browser, server: Server) -> None:
    fields = {"csrf_token": member.csrf("/keys"), "name": "gateway", "read": "1", "password": PASSWORD}

    cookies = dict(member.client.cookies)
    with ThreadPoolExecutor(2) as clicks:
        sent = [clicks.submit(httpx.post, f"{server.url}/keys", data=fields, cookies=cookies) for _ in range(2)]
    statuses = [one.result().status_code for one in sent]
    assert sorted(statuses) == [200, 409]
    mine = "FROM users WHERE users.id = user_id AND email = $1"
    assert len(execute(server, f"SELECT 1 {mine.replace('FROM', 'FROM api_keys,')}", member.email)) == 1
    execute(server, f"UPDATE api_keys SET expires_at = now() {mine}", member.email)
    assert 'id="new-key"' in member.post("/keys", name="gateway", read="1", password=PASSWORD).text


def test_expired_key(member: Browser, server: Server) -> None:
    key = member.create_key(read="1", days="30")
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/v1/predictions", headers=headers).status_code == 200
    [row] = execute(server, "SELECT expires_at FROM api_keys WHERE hint = $1", key[:9])
    assert timedelta(days=29) < row["expires_at"] - datetime.now(UTC) <= timedelta(days=30)
    execute(server, "UPDATE api_keys SET expires_at = now() WHERE hint = $1", key[:9])
    time.sleep(0.6)
    assert httpx.get(f"{server.url}/v1/predictions", headers=headers).status_code == 401
    assert "expired" in member.get("/keys").text


def test_everything_held_about_a_user(member: Browser, jpegs: list[bytes]) -> None:
    first = member.upload(jpegs[0], name="one.jpg").json()
    member.post(f"/predictions/{first['id']}/context", page="/profile", lesion="left arm", note="seen twice")
    member.create_key("gateway")
    held = member.get("/profile/export.json")
    assert "attachment" in held.headers["content-disposition"]
    document = held.json()
    assert document["account"]["email"] == member.email
    assert [key["name"] for key in document["api_keys"]] == ["gateway"]
    assert [lesion["name"] for lesion in document["lesions"]] == ["left arm"]
    [result] = document["results"]
    assert (result["filename"], result["id"], result["context"]["note"]) == ("one.jpg", first["id"], "seen twice")
    assert result["context"]["lesion"] == "left arm"
    assert len(result["cam"]["values"]) == 10
    done = [row["action"] for row in document["audit"]]
    assert done[0] == "account.registered"
    assert {"result.changed", "key.created", "account.exported"} <= set(done)
    assert document["api_keys"][0].keys() >= {"expires_at", "last_used_at"}


def test_deleted_account_leaves_only_nameless_audit_rows(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    member.upload(jpegs[0], name="a patient.jpg")
    member.create_key("deleted gateway")
    [user] = execute(server, "SELECT id FROM users WHERE email = $1", member.email)
    assert member.post("/profile/delete", page="/profile", password="wrong").status_code == 403
    assert member.post("/profile/delete", page="/profile", password=PASSWORD).status_code == 303
    assert member.get("/upload").status_code == 303
    assert again(member).log_in().status_code == 401
    tables = execute(server, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    holding = {}
    for [table] in tables:
        text = repr([tuple(row.items()) for row in execute(server, f'SELECT * FROM "{table}"')])
        holding[table] = [
            what for what in (str(user["id"]), member.email, "a patient", "deleted gateway") if what in text
        ]
    assert holding.pop("audit") == [str(user["id"])]
    assert not any(holding.values()), holding


def test_limits_hold_across_processes(start: Callable[..., Server], server: Server) -> None:
    one, other = Browser(server.url), Browser(start().url)
    other.email = one.email
    guesses = [(one, other)[n % 2].log_in(f"wrong guess number {n}").status_code for n in range(12)]
    assert guesses == [401] * 10 + [429] * 2


def test_clock_that_was_set_back_bars_nobody(member: Browser, server: Server) -> None:
    visitor = again(member)
    for _ in range(11):
        refused = visitor.log_in("a wrong guess")
    assert refused.status_code == 429
    late = execute(server, "UPDATE rate_counts SET expires_at = expires_at + interval '1 day' RETURNING key")
    assert late
    assert visitor.log_in("a wrong guess").status_code == 401
    assert visitor.log_in().status_code == 303


def test_window_lasts_as_long_as_it_did(member: Browser, server: Server) -> None:
    visitor = again(member)
    statuses = [visitor.log_in("a wrong guess").status_code for _ in range(11)]
    execute(server, "UPDATE rate_counts SET expires_at = expires_at - interval '14 minutes'")
    assert [*statuses, visitor.log_in().status_code] == [401] * 10 + [429] * 2
    execute(server, "UPDATE rate_counts SET expires_at = expires_at - interval '1 minute'")
    assert visitor.log_in().status_code == 303


def test_code_after_the_clock_was_set_back(member: Browser, server: Server, letters: str) -> None:
    used = "UPDATE users SET totp_last_step = extract(epoch FROM now())::bigint / 30 + $2 WHERE email = $1"
    execute(server, used, member.email, 1)
    assert second_step(again(member), code(letters)).status_code == 401, "used up by a code of the next half minute"
    execute(server, used, member.email, 120)
    right = code(letters)
    assert second_step(again(member), right).status_code == 303
    assert second_step(again(member), right).status_code == 401


def test_images_of_a_key_are_limited(start: Callable[..., Server], jpegs: list[bytes]) -> None:
    server = start(rate_limit=60)
    member = Browser(server.url)
    member.register()
    headers = {"Authorization": f"Bearer {member.create_key()}", "Content-Type": "image/jpeg"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        answers = [client.post("/v1/predictions", content=jpegs[0]) for _ in range(62)]
    assert [answer.status_code for answer in answers[:60]] == [201] + [200] * 59
    assert [answer.status_code for answer in answers[60:]] == [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert member.upload(jpegs[1]).status_code == 201, "a person has a limit of their own"


def test_logs_hold_no_secret_and_no_image_name(
    member: Browser,
    server: Server,
    jpegs: list[bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = member.create_key()
    member.upload(jpegs[0], name="a patient.jpg")
    again(member).log_in("a wrong password")
    server.stand_in.down = True
    member.upload(jpegs[1], name="a patient.jpg")
    written = "".join(capfd.readouterr()) + caplog.text
    for secret in (key, "a patient", PASSWORD, "a wrong password", member.cookie or "?", member.email):
        assert secret not in written


def test_written_profile_words(member: Browser) -> None:
    page = member.get("/profile?done=password").text
    assert "every other session has ended" in page
    assert json.dumps("<x>") not in member.get("/profile?done=<x>").text


def test_key_file_is_private(server: Server, tmp_path: Path) -> None:
    assert (server.settings.state_dir / "secret.key").stat().st_mode & 0o777 == 0o600
