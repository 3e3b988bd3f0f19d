"""What is said about images, lesions over time, and the history's filters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute

LONG = "x" * 81


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    browser.client.headers["X-CSRF-Token"] = browser.csrf("/profile")
    yield browser
    browser.client.close()


def send(member: Browser, data: bytes, name: str = "a.jpg", **said: str) -> dict[str, Any]:
    """Upload raw bytes with headers about them."""
    headers = {f"X-{key.replace('_', '-')}": quote(value) for key, value in said.items()}
    headers |= {"Content-Type": "image/jpeg", "X-Filename": quote(name), "Accept": "*/*"}
    answer = member.client.post("/v1/predictions", content=data, headers=headers)
    return {"status": answer.status_code, **answer.json()}


def test_context_by_headers_and_by_form(member: Browser, jpegs: list[bytes]) -> None:
    said = {"lesion": "Lluïsa’s  spot", "body_site": "Head/Neck", "note": "größer?"}
    first = send(member, jpegs[0], **said)
    kept = {"lesion": "Lluïsa’s spot", "body_site": "head/neck", "note": "größer?"}
    assert (first["status"], first["context"]) == (201, kept)
    second = member.client.post("/v1/predictions", files={"file": ("b.jpg", jpegs[1])}, data=said)
    assert (second.status_code, second.json()["context"]) == (201, kept)
    assert member.client.get(f"/v1/predictions/{first['id']}").json()["context"] == kept
    assert "context" not in send(member, jpegs[2])


@pytest.mark.parametrize(
    "said", [{"lesion": LONG}, {"note": "x" * 501}, {"body_site": "moon"}, {"lesion": "a\x00b"}, {"note": "a\u202eb"}]
)
def test_unusable_context_costs_nothing(
    member: Browser, server: Server, jpegs: list[bytes], said: dict[str, str]
) -> None:
    refused = send(member, jpegs[0], **said)
    assert (refused["status"], refused["code"]) == (422, "request_invalid")
    form = member.client.post("/v1/predictions", files={"file": ("b.jpg", jpegs[1])}, data=said)
    assert form.status_code == 422
    assert server.stand_in.calls == []


def test_repeat_changes_nothing_that_was_said(member: Browser, jpegs: list[bytes]) -> None:
    send(member, jpegs[0], lesion="one")
    again = send(member, jpegs[0], lesion="another")
    assert (again["status"], again["context"]["lesion"]) == (200, "one")
    assert "another" not in member.get("/lesions").text


def test_patch(member: Browser, jpegs: list[bytes]) -> None:
    result = send(member, jpegs[0], lesion="one", note="first")
    path = f"/v1/predictions/{result['id']}"
    changed = member.client.patch(path, json={"lesion": "two", "body_site": "palms/soles"})
    assert changed.json()["context"] == {"lesion": "two", "body_site": "palms/soles", "note": None}
    assert member.client.patch(path, json={"body_site": "moon"}).status_code == 422
    assert "context" not in member.client.patch(path, json={}).json()


def test_lesion_over_time(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    results = [send(member, data, f"{n}.jpg", lesion="arm") for n, data in enumerate(jpegs[:3])]
    query = "UPDATE predictions SET created_at = created_at - make_interval(days => $2) WHERE id = $1::text::uuid"
    execute(server, query, results[2]["id"], 60)
    found = re.search(r'href="/lesions/([0-9a-f-]+)"', member.get("/lesions").text)
    assert found
    page = member.get(f"/lesions/{found[1]}").text
    assert re.findall(r">(\d\.jpg)</a>", page) == ["1.jpg", "0.jpg", "2.jpg"]
    marks = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)%" cy="([\d.]+)%"', page)]
    melanoma = [results[n]["probabilities"]["melanoma"] for n in (2, 0, 1)]
    assert [x for x, _ in marks] == sorted(x for x, _ in marks)
    assert (marks[0][0], marks[-1][0]) == (0, 100)
    assert [y for _, y in marks] == pytest.approx([100 * (1 - value) for value in melanoma], abs=0.01)


def test_lesion_renamed_and_forgotten(member: Browser, jpegs: list[bytes]) -> None:
    result = send(member, jpegs[0], lesion="arm")
    send(member, jpegs[1], lesion="leg")
    [arm] = re.findall(r'href="/lesions/([0-9a-f-]+)">arm', member.get("/lesions").text)
    taken = member.post(f"/lesions/{arm}", page="/profile", name="leg")
    assert (taken.status_code, "has this name already" in taken.text) == (409, True)
    assert (
        member.post(f"/lesions/{arm}", page="/profile", name="left arm", body_site="upper extremity").status_code == 303
    )
    assert member.client.get(f"/v1/predictions/{result['id']}").json()["context"]["lesion"] == "left arm"
    assert member.post(f"/lesions/{arm}/delete", page="/profile").status_code == 303
    assert member.get(f"/lesions/{arm}").status_code == 404
    assert "context" not in member.client.get(f"/v1/predictions/{result['id']}").json()


@pytest.fixture
def some(member: Browser, server: Server, jpegs: list[bytes]) -> dict[str, dict[str, Any]]:
    """Four results: of two lesions, two sites, and of different days."""
    results = {
        "old": send(member, jpegs[0], "old.jpg", lesion="arm", body_site="upper extremity"),
        "note": send(member, jpegs[1], "b.jpg", note="100% sure_thing"),
        "leg": send(member, jpegs[2], "c.jpg", lesion="leg", body_site="lower extremity"),
        "new": send(member, jpegs[3], "d.jpg"),
    }
    query = "UPDATE predictions SET created_at = $2 WHERE id = $1::text::uuid"
    execute(server, query, results["old"]["id"], datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC))
    return results


def names(member: Browser, **filters: str) -> set[str]:
    items = member.client.get("/v1/predictions", params=filters).json()["items"]
    return {item["id"] for item in items}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"search": "old"}, {"old"}),
        ({"search": "ARM"}, {"old"}),
        ({"search": "100% sure_t"}, {"note"}),
        ({"search": "%"}, {"note"}),
        ({"search": "b_jpg"}, set()),
        ({"since": "2026-06-01"}, {"note", "leg", "new"}),
        ({"until": "2026-05-31"}, {"old"}),
        ({"since": "2026-05-31", "until": "2026-05-31"}, {"old"}),
        ({"body_site": "lower extremity"}, {"leg"}),
        ({"decision": "abstained"}, set()),
    ],
)
def test_filters(member: Browser, some: dict[str, dict[str, Any]], filters: dict[str, str], expected: set[str]) -> None:
    assert names(member, **filters) == {some[name]["id"] for name in expected}
    page = member.client.get("/history", params=filters).text
    assert set(re.findall(r'name="id" value="([0-9a-f-]+)"', page)) == {some[name]["id"] for name in expected}


def test_decisions_part_the_history(member: Browser, some: dict[str, dict[str, Any]]) -> None:
    refer = {one["id"] for one in some.values() if one["decision"]["refer"]}
    assert names(member, decision="refer") == refer
    assert names(member, decision="below") == {one["id"] for one in some.values()} - refer
    page = member.get("/history").text
    assert "4 results" in page
    assert f"{len(refer)} referrals, {4 - len(refer)} below the threshold, 0 without assessment" in page


@pytest.mark.parametrize("filters", [{"since": "yesterday"}, {"body_site": "moon"}, {"decision": "x"}, {"sort": "x"}])
def test_unknown_filters(member: Browser, filters: dict[str, str]) -> None:
    assert member.client.get("/history", params=filters).status_code == 422


@pytest.mark.parametrize("sort", ["newest", "oldest", "melanoma"])
def test_every_order_pages_without_loss(member: Browser, jpegs: list[bytes], sort: str) -> None:
    sent = []
    for number in range(60):
        headers = {"Idempotency-Key": str(number), "Content-Type": "image/jpeg"}
        answer = member.client.post("/v1/predictions", content=jpegs[number % 4], headers=headers).json()
        sent.append((answer["id"], answer["probabilities"]["melanoma"]))
    seen: list[str] = []
    path = f"/history?sort={sort}"
    while path:
        page = member.get(path).text
        seen += re.findall(r'name="id" value="([0-9a-f-]+)"', page)
        further = re.search(r'href="(/history\?[^"]+)" rel="next"', page)
        path = further[1].replace("&amp;", "&") if further else ""
    assert len(seen) == len(set(seen)) == 60
    if sort == "melanoma":
        melanoma = dict(sent)
        assert [melanoma[one] for one in seen] == sorted(melanoma.values(), reverse=True)
    else:
        ids = [one for one, _ in sent]
        assert seen == (ids if sort == "oldest" else ids[::-1])


def test_downloads_follow_the_filter(member: Browser, some: dict[str, dict[str, Any]]) -> None:
    lines = member.get("/history.csv?search=arm").text.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("old.jpg,")
    assert lines[1].endswith(",2026-05-31T23:59:59+00:00,arm")
    [found] = member.get("/history.json?search=arm").json()
    assert (found["filename"], found["id"], found["context"]["lesion"]) == ("old.jpg", some["old"]["id"], "arm")
    assert member.get("/history.json?search=nothing").json() == []


def test_compare(member: Browser, some: dict[str, dict[str, Any]]) -> None:
    page = member.get(f"/compare?id={some['leg']['id']}&id={some['old']['id']}").text
    assert page.index("old.jpg") < page.index("c.jpg"), "by time"
    assert page.count('class="overlay"') == 2
    assert member.get("/compare?id=x").status_code == 422


def test_machine_sees_no_web_words(server: Server, api: httpx.Client, jpegs: list[bytes]) -> None:
    del server
    answer = api.post("/v1/predictions", content=jpegs[0], headers={"Content-Type": "image/jpeg", "X-Lesion": "a%20b"})
    assert answer.json()["context"]["lesion"] == "a b"
