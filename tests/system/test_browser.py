"""What a clinician does, in a real Chromium against the whole running stack."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.chromium import Chromium, needs_chromium
from tests.system.stack import Stack

pytestmark = needs_chromium


@pytest.fixture
def browser(stack: Stack) -> Iterator[Chromium]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Chromium(stack.url, profile)
        yield chromium
        chromium.quit()


def test_register_upload_result_overlay_history(browser: Chromium, samples: Path) -> None:
    browser.register()
    browser.choose(samples / "sample-003.jpg")
    browser.until(lambda: browser.count(".result-figures .bars > div") == 4, "the four columns are drawn")
    browser.find(".overlay-canvas:not([hidden])")
    assert browser.pixel(0.5, 0.5)[3] == 255
    shown = browser.find(".result-figures").text
    assert "melanoma" in shown.lower()
    assert "%" in shown
    browser.open("/history")
    assert "sample-003.jpg" in browser.find("tbody tr").text
    browser.find("tbody th a").click()
    assert browser.find(".result-figures").text == shown, "the stored result reads as it did"
    assert browser.complaints() == []


def test_while_triton_is_away_the_page_says_so_and_then_goes_on(browser: Chromium, stack: Stack, samples: Path) -> None:
    browser.register()
    banner = browser.find("#not-ready")
    assert not banner.is_displayed()
    stack.triton().send_signal(signal.SIGKILL)
    browser.open("/upload")
    stack.wait_for(200, 30)
    browser.until(lambda: not browser.find("#not-ready").is_displayed(), "the banner to go")
    browser.choose(samples / "sample-004.jpg")
    assert "Melanoma" in browser.find_element(By.CSS_SELECTOR, ".item-status").text
