"""The pages about results, without a browser: who sees what, the CSV, headers, words for errors."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from dermserve.labels import CSV_HEADER, LEAF_NAMES
from dermserve.model_card import Measured
from frontend.i18n import percent as percent_in
from frontend.templating import browser_name, point_name
from frontend.upload import display_name
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, make_card

PAGES = ["/", "/login", "/register", "/about", "/docs", "/privacy", "/terms", "/forgot", "/reset"]
PUBLIC = [*PAGES, "/samples/1.jpg", "/static/style.css", "/static/upload.js"]


def percent(value: float) -> str:
    return percent_in(value, "en")


@pytest.fixture
def member(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url)
    browser.register()
    yield browser
    browser.client.close()


@pytest.mark.parametrize("path", [*PUBLIC, "/nothing", "/v1/predictions", "/healthz"])
def test_headers_on_every_response(server: Server, path: str) -> None:
    headers = httpx.get(server.url + path, headers={"Accept": "text/html"}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    expected = {"/static": "no-cache", "/samples": "public, max-age=86400"}
    assert headers["cache-control"] == expected.get("/" + path.split("/")[1], "no-store")


@pytest.mark.parametrize("path", [*PAGES, "/nothing"])
def test_pages_say_what_this_is_and_run_nothing_inline(server: Server, path: str) -> None:
    page = httpx.get(server.url + path, headers={"Accept": "text/html"}).text
    assert "Research use only, not a medical device" in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://(?!127\.0\.0\.1)", page)


OWN = [
    "/upload",
    "/history",
    "/history.csv",
    "/history.json",
    "/keys",
    "/lesions",
    "/lesions/named",
    "/compare",
    "/profile",
]
OWN += ["/profile/export.json", "/admin", "/admin/audit", f"/predictions/{uuid4()}", f"/lesions/{uuid4()}"]


@pytest.mark.parametrize("path", OWN)
def test_strangers_are_sent_to_the_login(server: Server, path: str) -> None:
    response = httpx.get(server.url + path, headers={"Accept": "text/html"})
    assert (response.status_code, response.headers["location"]) == (303, f"/login?next={path}")


def test_result_page(member: Browser, jpegs: list[bytes]) -> None:
    result = member.upload(jpegs[0], name=quote("Mole <b>left & é.jpg")).json()
    page = member.get(f"/predictions/{result['id']}").text
    assert "Mole &lt;b&gt;left &amp; é.jpg" in page
    for share in result["probabilities"].values():
        assert percent(share) in page
    for name in LEAF_NAMES.values():
        assert name in page
    assert ("Referral suggested" in page) == result["decision"]["refer"]
    assert "95\u00a0% sensitivity" in page
    assert "a made-up validation set" in page
    assert "1,200 images" in page
    assert "Image quality is not checked yet" in page
    assert result["image"]["sha256"] in page


def test_others_see_nothing(member: Browser, server: Server, jpegs: list[bytes]) -> None:
    result = member.upload(jpegs[0], name="mine.jpg").json()
    path = f"/predictions/{result['id']}"
    stranger = Browser(server.url)
    stranger.register()
    for url in (path, f"{path}/fragment"):
        assert stranger.get(url).status_code == 404
    assert stranger.post(f"{path}/delete", page="/upload").status_code == 404
    assert "mine.jpg" not in stranger.get("/history").text + stranger.get("/history.csv").text
    assert member.get(path).status_code == 200


def test_history_pages_and_deletes(member: Browser, jpegs: list[bytes]) -> None:
    token = member.csrf("/upload")
    for number in range(30):
        headers = {"X-CSRF-Token": token, "Idempotency-Key": str(number), "X-Filename": f"lesion-{number:02}.jpg"}
        assert member.client.post("/v1/predictions", content=jpegs[0], headers=headers).status_code == 201
    first = member.get("/history").text
    names = re.findall(r">(lesion-\d\d\.jpg)</a>", first)
    assert names == [f"lesion-{number:02}.jpg" for number in range(29, 4, -1)]
    older = re.search(r'href="(/history\?cursor=[^"]+)"', first)
    assert older
    second = member.get(older[1]).text
    assert re.findall(r">(lesion-\d\d\.jpg)</a>", second) == [f"lesion-{number:02}.jpg" for number in range(4, -1, -1)]
    assert "Further results" not in second
    delete = re.search(r'action="(/predictions/[^"]+/delete)"', first)
    assert delete
    assert member.post(delete[1], page="/history").status_code == 303
    assert "lesion-29.jpg" not in member.get("/history").text


def test_csv(member: Browser, jpegs: list[bytes]) -> None:
    assert member.get("/history.csv").text == "filename,Benign,Suspicious,Malignant,Melanoma,analysed_at,lesion\r\n"
    first = member.upload(jpegs[0], name="a, b.jpg").json()
    second = member.upload(jpegs[1]).json()
    response = member.get("/history.csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in response.headers["content-disposition"]
    lines = list(csv.reader(io.StringIO(response.text)))
    assert lines[0] == [*CSV_HEADER, "analysed_at", "lesion"]
    assert [line[0] for line in lines[1:]] == [second["id"], "a, b.jpg"]
    assert [float(value) for value in lines[2][1:5]] == pytest.approx(list(first["probabilities"].values()), abs=1e-6)


@pytest.mark.parametrize("name", ["=cmd|' C calc'!A0", "+1", "-1", "@SUM(A1)", "=1,2", "＝1"])
def test_csv_names_are_never_formulas(member: Browser, jpegs: list[bytes], name: str) -> None:
    member.upload(jpegs[0], name=quote(name))
    [_, line] = csv.reader(io.StringIO(member.get("/history.csv").text))
    assert line[0].startswith("'")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("lesion.jpg", "lesion.jpg"),
        ("C:\\Users\\Ana Pérez\\scan.png", "scan.png"),
        ("../../etc/passwd", "passwd"),
        ("a\x00\r\nb\u202egpj.exe", "abgpj.exe"),
        ("x" * 500, "x" * 120),
        ("dir/", None),
        ("   ", None),
        ("", None),
    ],
)
def test_display_name(raw: str, shown: str | None) -> None:
    assert display_name(raw) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.0\u00a0%"),
        (0.0004, "<\u00a00.1\u00a0%"),
        (0.123, "12.3\u00a0%"),
        (0.99999, ">\u00a099.9\u00a0%"),
        (1, "100.0\u00a0%"),
    ],
)
def test_percent_never_claims_certainty(value: float, shown: str) -> None:
    assert percent(value) == shown


def test_point_name() -> None:
    assert point_name("specificity_80") == "80\u00a0% specificity"
    assert point_name("youden_index") == "youden index"


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Windows"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge, Linux"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) Version/18.5 Safari/604.1", "Safari, iPhone"),
        ("python-httpx/0.28", "python-httpx/0.28"),
        ("", ""),
    ],
)
def test_sessions_are_named_by_their_browser(agent: str, shown: str) -> None:
    assert browser_name(agent) == shown


def test_errors_are_pages_for_people(server: Server) -> None:
    page = httpx.get(f"{server.url}/nothing", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "<h1>There is nothing here</h1>" in page.text
    assert httpx.get(f"{server.url}/nothing").headers["content-type"] == "application/problem+json"


def test_samples(server: Server) -> None:
    first, again = (httpx.get(f"{server.url}/samples/1.jpg") for _ in range(2))
    assert first.content == again.content
    assert first.content.startswith(b"\xff\xd8\xff")
    for path in ("/samples/0.jpg", "/samples/7.jpg", "/samples/999999999.jpg"):
        assert httpx.get(server.url + path).status_code == 404


def test_docs_name_every_error_and_route(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs", headers={"Accept": "text/html"}).text
    for words in ("POST", "/v1/predictions/{prediction_id}", 'id="image_too_large"', "Idempotency-Key", "/readyz"):
        assert words.lower() in page.lower()


def test_about_shows_the_card(server: Server) -> None:
    page = httpx.get(f"{server.url}/about").text
    for words in ("melanoma 1.2.3", "made-up test set", "0.874", "0.850 – 0.900", "CC-0", "Made up for tests."):
        assert words in page


def test_an_abstained_result_does_not_look_like_a_normal_one(
    start: Callable[..., Server], tmp_path: Path, jpegs: list[bytes]
) -> None:
    make_card(
        tmp_path,
        quality=Measured(measured=True, thresholds={"marker_pen": 0.5}),
        ood=Measured(measured=True, thresholds={"ood": 5.0}),
    )
    browser = Browser(start(model_repository=tmp_path).url)
    browser.register()
    result = browser.upload(jpegs[0], name="page.jpg").json()
    page = browser.get(f"/predictions/{result['id']}").text
    assert "does not look like a dermoscopy photograph" in page
    assert "neither a referral nor an all-clear" in page
    assert "There are coloured marks" in page
    for normal in ("Referral suggested", "Below the referral threshold", "Nine diagnoses", "cleared"):
        assert normal not in page
    shown = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert percent(result["probabilities"]["melanoma"]) not in shown
    history = browser.get("/history").text
    assert "No assessment" in history
    assert percent(result["probabilities"]["melanoma"]) not in history
