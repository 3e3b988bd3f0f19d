"""What a clinician does, in a real Chromium against the whole running stack."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.chromium import choose, launched, needs_chromium, overlay_canvas, pixel, register, visitor
from tests.system.stack import Stack

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(stack: Stack, chromium: Browser) -> Iterator[Page]:
    with visitor(chromium, stack.url) as page:
        yield page


def test_register_upload_result_overlay_history(page: Page, samples: Path) -> None:
    register(page)
    choose(page, samples / "sample-003.jpg")
    expect(page.locator(".result-figures .bars > div")).to_have_count(4)
    overlay_canvas(page)
    assert pixel(page, 0.5, 0.5)[3] == 255
    figures = page.locator(".result-figures")
    shown = figures.inner_text()
    assert "melanoma" in shown.lower()
    assert "%" in shown
    page.goto("/history")
    expect(page.locator("table.history tbody tr")).to_contain_text("sample-003.jpg")
    page.locator("tbody th a").click()
    expect(figures).to_be_visible()
    assert figures.inner_text() == shown, "the stored result reads as it did"


def test_while_triton_is_away_the_page_says_so_and_then_goes_on(page: Page, stack: Stack, samples: Path) -> None:
    register(page)
    banner = page.locator("#not-ready")
    expect(banner).to_be_hidden()
    stack.triton().send_signal(signal.SIGKILL)
    page.goto("/upload")
    stack.wait_for(200, 30)
    expect(banner).to_be_hidden()
    choose(page, samples / "sample-004.jpg")
    expect(page.locator(".item-status")).to_contain_text("Melanoma")
