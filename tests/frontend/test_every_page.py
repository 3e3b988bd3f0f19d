"""Every page: accessible by axe-core's rules in both colour schemes and more than one language, at every width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from starlette.routing import Route

from frontend import pages
from tests.chromium import needs_chromium, sideways, visitor
from tests.frontend.conftest import Server
from tests.frontend.tour import STRANGERS, Tour, tour

pytestmark = needs_chromium
PHONE = 360
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RULES = {"runOnly": WCAG, "rules": {"target-size": {"enabled": True}}, "resultTypes": ["violations"]}
# The colour scheme changes colours and nothing else.
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def account(running: Server, chromium: Browser, jpegs: list[bytes]) -> Tour:
    running.stand_in.reset()
    return tour(running, jpegs)


@pytest.fixture(params=["stranger", "logged in"])
def paths(request: pytest.FixtureRequest, account: Tour) -> tuple[str, ...]:
    return STRANGERS if request.param == "stranger" else account.pages


@pytest.fixture
def page(server: Server, chromium: Browser, account: Tour, paths: tuple[str, ...]) -> Iterator[Page]:
    with visitor(chromium, server.url) as page:
        if paths is not STRANGERS:
            account.lend(page)
        yield page


def violations(page: Page, options: dict[str, Any]) -> list[str]:
    """What axe-core calls serious or critical, and where."""
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']}: {json.dumps([node['html'][:160] for node in one['nodes']][:4])}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("language", ["en", "es"])
def test_axe_finds_nothing_serious(page: Page, paths: tuple[str, ...], language: str) -> None:
    page.goto(f"/language/{language}")
    found = {}
    for path in paths:
        page.emulate_media(color_scheme="light")
        page.goto(path)
        assert page.locator("html").get_attribute("lang") == language
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        found[path, "light"] = violations(page, RULES)
        page.emulate_media(color_scheme="dark")
        found[path, "dark"] = violations(page, COLOURS)
    assert {place: faults for place, faults in found.items() if faults} == {}


@pytest.mark.parametrize("width", [PHONE, 800, 1100, 1280, 1920])
def test_no_page_scrolls_sideways(page: Page, paths: tuple[str, ...], width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for language in ("en", "es", "ca") if width == PHONE else ("es",):  # whose words are the longest
        page.goto(f"/language/{language}")
        wide = {}
        for path in paths:
            page.goto(path)
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            wide[path] = sideways(page)
        assert {path: pixels for path, pixels in wide.items() if pixels > 0} == {}, language


def test_no_page_is_forgotten(account: Tour) -> None:
    """Each route that gives a page is in the tour."""
    routes = [route for router in pages.ROUTERS for route in router.routes if isinstance(route, Route)]
    others = (
        "{language}",
        "/lesions/named",
        ".jpg",
        ".csv",
        ".json",
        "/fragment",
        "/login/sign-on",
    )  # no pages, or a hospital's
    shown = [route for route in routes if "GET" in route.methods and not any(part in route.path for part in others)]
    assert len(shown) > 15
    opened = {path.partition("?")[0] for path in (*account.pages, *STRANGERS)}
    missing = [route.path for route in shown if not any(route.path_regex.match(path) for path in opened)]
    assert missing == []
