"""A browser without scripts: keeps cookies, reads a page's CSRF token, posts its forms."""

from __future__ import annotations

import re

import httpx

from tests.frontend.conftest import PASSWORD, new_email


class Browser:
    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=30)
        self.email = new_email()

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def csrf(self, path: str) -> str:
        """The CSRF token that a page holds."""
        found = re.search(r'(?:name="csrf_token" value|data-csrf)="([^"]+)"', self.get(path).text)
        assert found, path
        return found[1]

    def post(self, path: str, page: str | None = None, **fields: str) -> httpx.Response:
        """Submit a form that stands on `page`."""
        return self.client.post(path, data={"csrf_token": self.csrf(page or path), **fields})

    def register(self) -> httpx.Response:
        return self.post("/register", email=self.email, password=PASSWORD)

    def log_in(self, password: str = PASSWORD, **fields: str) -> httpx.Response:
        return self.post("/login", email=self.email, password=password, **fields)

    def create_key(self, name: str = "test", **fields: str) -> str:
        """A new API key, all of whose scopes are chosen unless `fields` say otherwise."""
        scopes = fields or {"predict": "1", "read": "1", "delete": "1"}
        page = self.post("/keys", name=name, password=PASSWORD, **scopes)
        return page.text.split('id="new-key" tabindex="0">')[1].split("<")[0]

    def upload(self, data: bytes, name: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream", "X-CSRF-Token": self.csrf("/upload"), "Accept": "*/*"}
        return self.client.post(
            "/v1/predictions", content=data, headers=headers | ({"X-Filename": name} if name else {})
        )

    @property
    def cookie(self) -> str | None:
        return self.client.cookies.get("derm_session")
