"""Every page that there is, and an account with something on each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote

from playwright.sync_api import Page

from tests.chromium import elsewhere
from tests.frontend.browsing import Browser
from tests.frontend.conftest import Server, execute

PUBLIC = ("/", "/about", "/privacy", "/terms", "/docs", "/nothing")
STRANGERS = ("/login", "/register", "/forgot", "/reset")


@dataclass
class Tour:
    """An administrator who has results, a lesion over time, and keys; `pages` are what they can open."""

    browser: Browser
    results: list[str] = field(default_factory=list)
    lesion: str = ""

    @property
    def pages(self) -> tuple[str, ...]:
        """Paths for who is logged in, those for everybody included."""
        results = [f"/predictions/{one}" for one in self.results]
        own = ("/upload", "/history", "/history?search=nothing+like+that", "/lesions", f"/lesions/{self.lesion}")
        compared = "/compare?" + "&".join(f"id={one}" for one in self.results[:2])
        return (*PUBLIC, *own, results[0], compared, "/compare", "/keys", "/profile", "/admin", "/admin/audit")

    def lend(self, page: Page) -> None:
        """Let a page act for this account."""
        url = str(self.browser.client.base_url).rstrip("/")
        cookies = [{"name": name, "value": value, "url": url} for name, value in self.browser.client.cookies.items()]
        page.context.add_cookies(cookies)  # type: ignore[arg-type]


def tour(server: Server, jpegs: list[bytes]) -> Tour:
    """Fill an account: four results, three of them of one lesion, two keys of which one is revoked."""
    browser = Browser(server.url)
    browser.register()
    elsewhere(execute, server, "UPDATE users SET role = 'admin' WHERE email = $1", browser.email)
    found = Tour(browser)
    token = browser.csrf("/upload")
    for number, data in enumerate(jpegs):
        said = {"X-Filename": f"visit-{number}.jpg"}
        if number < 3:
            said |= {
                "X-Lesion": "left forearm 1",
                "X-Body-Site": quote("upper extremity"),
                "X-Note": quote("naïve note"),
            }
        headers = {"Content-Type": "application/octet-stream", "X-CSRF-Token": token, "Accept": "*/*", **said}
        answer = browser.client.post("/v1/predictions", content=data, headers=headers)
        assert answer.status_code == 201, answer.text
        found.results.append(answer.json()["id"])
    shown = re.search(r"/lesions/([0-9a-f-]{36})", browser.get("/lesions").text)
    assert shown
    found.lesion = shown[1]
    browser.create_key("image gateway")
    browser.create_key("old gateway", read="1", days="30")
    revoke = re.search(r'action="(/keys/[0-9a-f-]+/revoke)"', browser.get("/keys").text)
    assert revoke
    browser.post(revoke[1], page="/keys")
    return found
