"""A real Chromium, headless, for the tests that look at pages: the system's own, steered by Playwright."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, WebError, expect, sync_playwright

from tests.frontend.conftest import PASSWORD, new_email

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="chromium is not installed")
FLAGS = ("--no-sandbox", "--disable-quic", "--disable-dev-shm-usage")
PATIENCE_MS = 15_000
# What tests provoke: refusals and outages, and many looks at the pixels of a canvas.
PROVOKED = ("the server responded", "getImageData", "ERR_CONNECTION_REFUSED", "ERR_NETWORK_CHANGED")

Found = TypeVar("Found")


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without a window, for as many visitors as come."""
    assert CHROMIUM, "chromium is not installed"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visitor(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page of somebody who was never here; a script that fails or is forbidden on the way fails the test."""
    usual = {"base_url": url, "viewport": {"width": 1280, "height": 900}, "locale": "en", "reduced_motion": "reduce"}
    context = browser.new_context(**{**usual, **options})
    context.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in PROVOKED):
            complaints.append(message.text)

    def on_error(error: WebError) -> None:
        complaints.append(str(error.error))

    context.on("console", on_console)
    context.on("weberror", on_error)
    try:
        yield context.new_page()
    finally:
        context.close()
    assert complaints == []


def elsewhere(work: Callable[..., Found], *arguments: Any) -> Found:
    """Call what starts an event loop of its own in another thread: Playwright's runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments).result()


def register(page: Page) -> str:
    """Register by the page; returns the address."""
    email = new_email()
    page.goto("/register")
    page.locator("#email").fill(email)
    page.locator("#password").fill(PASSWORD)
    page.locator("#password").press("Enter")
    page.wait_for_url("**/upload")
    return email


def choose(page: Page, *files: Path) -> None:
    """Choose files on the upload page and wait until each has its answer."""
    progress = page.locator("#progress")
    done = int((progress.text_content() or "0").split()[0])
    page.set_input_files("#files", files)
    expect(progress).to_have_text(re.compile(rf"^{done + len(files)} \w+ \d+ "))


def overlay_canvas(page: Page) -> None:
    """Wait for the activation map to be drawn."""
    expect(page.locator(".overlay-canvas")).to_be_visible()


def pixel(page: Page, x: float, y: float) -> list[int]:
    """RGBA of the overlay canvas at fractions of its size."""
    script = """([x, y]) => {
        const canvas = document.querySelector(".overlay-canvas");
        const at = [x * canvas.width, y * canvas.height].map(Math.floor);
        return Array.from(canvas.getContext("2d").getImageData(...at, 1, 1).data);
    }"""
    return list(page.evaluate(script, [x, y]))


def sideways(page: Page) -> int:
    """By how many pixels something is wider than the window, or than the column that it stands in."""
    script = """() => {
        const main = document.querySelector("main");
        const end = main.getBoundingClientRect().right - parseFloat(getComputedStyle(main).paddingRight);
        const parts = [...main.querySelectorAll("table, form, .card")].filter((one) => !one.closest(".scroll"));
        const over = parts.map((one) => Math.floor(one.getBoundingClientRect().right - end));
        return Math.max(0, document.documentElement.scrollWidth - innerWidth, ...over);
    }"""
    return int(page.evaluate(script))
