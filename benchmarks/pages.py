"""What each page costs: milliseconds until its last byte, and bytes, of somebody with a history behind them."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlencode

from benchmarks import report
from benchmarks.senders import Session, WrongAnswer, logged_in
from benchmarks.stack import Stack

_TIMEOUT_S = 30.0
_PAINTS = 20
_FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
    for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
}).observe({type: "paint", buffered: true}))"""
_STATIC = re.compile(r'(?:src|href)="(/static/[^"]+)"')
_IMPORT = re.compile(r'^import (?:.*? from )?"\./([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Visit:
    """One page: latency of each request in ms, and its bytes; `with_static`: with every file that it loads, once.

    `first_paint_ms`: in a browser with an empty cache, where there is one.
    """

    ms: Sequence[float]
    size: int
    with_static: int
    first_paint_ms: Sequence[float] = ()

    def as_row(self) -> dict[str, Any]:
        found = report.percentiles(self.ms)
        shown = {f"{name}_ms": round(found[name], 1) for name in ("p50", "p95")}
        if self.first_paint_ms:
            shown["first paint, p95 ms"] = round(report.percentiles(self.first_paint_ms)["p95"])
        return {
            **shown,
            "kB": round(self.size / 1e3, 1),
            "kB with scripts and styles": round(self.with_static / 1e3, 1),
        }


class Visitor:
    """A browser without a cache, logged in, on one kept connection."""

    def __init__(self, stack: Stack, cookie: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", stack.port, timeout=_TIMEOUT_S)
        self._headers = {"Cookie": cookie, "Accept": "text/html"}
        self._sizes: dict[str, int] = {}

    def get(self, path: str) -> bytes:
        """The body of a page.

        Raises:
            WrongAnswer: another status than 200.
        """
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise WrongAnswer(f"{answer.status} for {path}")
        return body

    def visit(self, path: str, count: int) -> Visit:
        ms = []
        for _ in range(count):
            began = time.perf_counter()
            body = self.get(path)
            ms.append((time.perf_counter() - began) * 1e3)
        loaded = self._loaded(_STATIC.findall(body.decode()))
        return Visit(ms, len(body), len(body) + sum(loaded.values()))

    def _loaded(self, paths: Sequence[str]) -> dict[str, int]:
        """Bytes of static files by path, those that scripts import included."""
        found: dict[str, int] = {}
        waiting = list(paths)
        while waiting:
            path = waiting.pop()
            if path not in found:
                body = self.get(path)
                found[path] = len(body)
                waiting += (
                    [f"/static/{name}" for name in _IMPORT.findall(body.decode())] if path.endswith(".js") else []
                )
        return found


def measure(stack: Stack, pictures: Sequence[bytes], *, count: int) -> dict[str, Visit]:
    """Visit every page `count` times, after uploading `pictures` and naming a lesion for some.

    Raises:
        WrongAnswer: a page or an upload did not go through.
    """
    cookie, csrf = logged_in(stack.url)
    send = Session(stack.url, cookie, csrf)()
    for picture in pictures:
        send(picture)
    visitor = Visitor(stack, cookie)
    ids = re.findall(r'name="id" value="([0-9a-f-]+)"', visitor.get("/history").decode())
    for one in ids[:10]:
        _post(stack, f"/predictions/{one}/context", cookie, {"csrf_token": csrf, "lesion": "measured"})
    lesion = re.search(r'href="(/lesions/[0-9a-f-]+)"', visitor.get("/lesions").decode())
    if lesion is None:
        raise WrongAnswer("no lesion was made")
    pages = {
        "home": "/", "about": "/about", "privacy": "/privacy", "API": "/docs", "upload": "/upload",
        "result": f"/predictions/{ids[0]}", "history": "/history", "history, searched": "/history?search=lesion",
        "lesions": "/lesions", "lesion": lesion[1], "compare": f"/compare?id={ids[0]}&id={ids[1]}",
        "API keys": "/keys", "profile": "/profile", "history as CSV": "/history.csv",
    }  # fmt: skip
    visits = {name: visitor.visit(path, count) for name, path in pages.items()}
    with _browser(stack.url, cookie) as first_paint_ms:
        if first_paint_ms is not None:
            for name in visits.keys() - {"history as CSV"}:
                painted = [first_paint_ms(pages[name]) for _ in range(min(count, _PAINTS))]
                visits[name] = replace(visits[name], first_paint_ms=painted)
    return visits


def _post(stack: Stack, path: str, cookie: str, fields: dict[str, str]) -> None:
    headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    status, body = stack.request("POST", path, urlencode(fields).encode(), headers)
    if status != 303:
        raise WrongAnswer(f"{status} for {path}: {body[:120]!r}")


@contextmanager
def _browser(url: str, cookie: str) -> Iterator[Callable[[str], float] | None]:
    """A real browser that was never here but for its login: calling it opens a page and gives the first paint in ms.

    That is W3C Paint Timing's first-contentful-paint. None where there is neither Chromium nor what steers it.
    """
    program = shutil.which("chromium")
    if program is None or find_spec("playwright") is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    cookies: Any = [{"name": name, "value": one.value, "url": url} for name, one in SimpleCookie(cookie).items()]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])

        def first_paint_ms(path: str) -> float:
            context = browser.new_context()
            context.add_cookies(cookies)
            page = context.new_page()
            page.goto(f"{url}{path}")
            ms = float(page.evaluate(_FIRST_PAINT))
            context.close()
            return ms

        yield first_paint_ms
        browser.close()
