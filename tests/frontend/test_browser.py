"""The pages in a real Chromium against a real uvicorn and PostgreSQL."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.chromium import Chromium, needs_chromium
from tests.frontend.conftest import Server

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium(running: Server) -> Iterator[Chromium]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(running.url, profile)
        yield browser
        browser.quit()


@pytest.fixture
def browser(chromium: Chromium, server: Server) -> Chromium:
    chromium.delete_all_cookies()
    chromium.get_log("browser")
    return chromium


@pytest.fixture(scope="module")
def files(jpegs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"lesion {number}.jpg" for number in range(len(jpegs))]
    for path, data in zip(paths, jpegs, strict=True):
        path.write_bytes(data)
    return paths


def test_upload_shows_the_result_in_place(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[0])
    assert "Melanoma" in browser.find(".item-status").text
    browser.find(".overlay-canvas:not([hidden])")
    browser.until(lambda: browser.count(".result-figures .bars > div") == 4, "the four columns are drawn")
    assert browser.count(".diagnoses .bars > div") == 9
    covered = browser.pixel(0.65, 0.45)
    browser.execute_script(
        "const s = document.querySelector('.overlay-opacity'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    bare = browser.pixel(0.65, 0.45)
    assert covered != bare
    assert bare[3] == 255
    assert browser.complaints() == []


def test_same_image_later_and_only_the_same(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[1])
    browser.open("/history")
    browser.find("tbody th a").click()
    chooser = browser.find(".overlay-file")
    chooser.send_keys(str(files[2]))
    browser.until(lambda: "another file" in browser.find(".overlay-status").text, "the wrong file to be refused")
    assert browser.count(".overlay-canvas:not([hidden])") == 0
    chooser.send_keys(str(files[1]))
    browser.find(".overlay-canvas:not([hidden])")
    assert browser.find(".overlay-status").text == ""
    assert browser.complaints() == []


def test_many_files_and_clear_words_for_each_refusal(browser: Chromium, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear colleague")
    (tmp_path / "cut.jpg").write_bytes(files[0].read_bytes()[:5000])
    (tmp_path / "nothing.png").touch()
    bad = [tmp_path / name for name in ("letter.jpg", "cut.jpg", "nothing.png")]
    browser.register()
    browser.choose(*files, *bad)
    words = {
        item.find_element(By.CSS_SELECTOR, ".item-name").text: item.find_element(By.CSS_SELECTOR, ".item-status").text
        for item in browser.find_elements(By.CSS_SELECTOR, ".item")
    }
    assert "not a JPEG, PNG or DICOM" in words["letter.jpg"]
    assert "damaged or incomplete" in words["cut.jpg"]
    assert "empty" in words["nothing.png"]
    assert all("Melanoma" in words[path.name] for path in files)
    assert browser.count(".item.failed") == 3
    browser.open("/history")
    assert browser.count(".history tbody tr") == len(files)


def test_same_file_twice_is_one_result(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[0])
    browser.choose(files[0])
    links = [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, ".item-status a")]
    assert len(links) == 2
    assert len(set(links)) == 1


def test_dropped_file(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
        document.querySelector(".drop").dispatchEvent(
            new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));"""
    browser.execute_script(script, base64.b64encode(files[3].read_bytes()).decode())
    browser.until(lambda: browser.find("#progress").text.startswith("1 of 1"), "the dropped file to be answered")
    assert "Melanoma" in browser.find(".item-status").text


def test_banner_while_the_model_server_is_away_and_upload_afterwards(
    browser: Chromium, server: Server, files: list[Path]
) -> None:
    browser.register()
    banner = browser.find("#not-ready")
    assert not banner.is_displayed()
    server.stand_in.down = True
    browser.open("/upload")
    browser.until(lambda: browser.find("#not-ready").is_displayed(), "the banner")
    assert "not answering at the moment" in browser.find("#not-ready").text
    browser.find("#files").send_keys(str(files[0]))
    browser.until(lambda: "Trying again" in browser.find(".item-status").text, "the upload to wait")
    server.stand_in.down = False
    browser.until(lambda: not browser.find("#not-ready").is_displayed(), "the banner to go")
    browser.until(lambda: "Melanoma" in browser.find(".item-status").text, "the upload to succeed by itself")


def test_delete_asks_first(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[0])
    browser.open("/history")
    browser.find(".row-action button").click()
    browser.switch_to.alert.dismiss()
    assert browser.count(".history tbody tr") == 1
    browser.find(".row-action button").click()
    browser.switch_to.alert.accept()
    browser.find(".empty")
    assert browser.count(".history tbody tr") == 0


def test_keyboard_alone(browser: Chromium, files: list[Path]) -> None:
    """Skip link, form, file field and result can be reached with Tab, and show where the focus is."""

    def tab() -> WebElement:
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        style = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", active)
        assert style == "solid" or active.get_attribute("id") == "files"
        return active

    browser.open("/about")
    skip = tab()
    assert skip.text == "Skip to content"
    assert skip.location["y"] > 0
    browser.open("/register")
    # The browser moves the focus a moment after the page is there.
    browser.until(
        lambda: browser.switch_to.active_element.get_attribute("id") == "email", "the first field has the focus"
    )
    assert tab().get_attribute("id") == "password"
    assert tab().text == "Create account"
    browser.register()
    for _ in range(12):
        if tab().get_attribute("id") == "files":
            break
    assert browser.switch_to.active_element.get_attribute("id") == "files"
    outline = browser.execute_script("return getComputedStyle(document.querySelector('.drop')).outlineStyle")
    assert outline == "solid"


def test_phone_width_has_no_sideways_scrolling(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[0])
    result = browser.find(".item-status a").get_attribute("href")
    assert result
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        paths = ["/", "/upload", "/history", "/keys", "/about", "/docs", result.removeprefix(browser.base_url)]
        for path in paths:
            browser.open(path)
            wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert (path, wide) == (path, seen)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Chromium, files: list[Path], scheme: str) -> None:
    """Text against what lies behind it: at least 4.5 to 1 (WCAG 2.2, 1.4.3), on every page."""
    browser.register()
    browser.choose(files[0])
    result = (browser.find(".item-status a").get_attribute("href") or "").removeprefix(browser.base_url)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for path in ("/", "/upload", "/history", "/keys", "/about", "/docs", result, "/nothing"):
        browser.open(path)
        weak = browser.execute_script(_WEAK_CONTRAST)
        assert weak == [], f"{path}: {json.dumps(weak)}"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


_WEAK_CONTRAST = """
const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => {
  v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
  if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
const weak = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest("script, template, noscript")) continue;
  const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) weak.push([walker.currentNode.data.trim().slice(0, 40), Math.round(100 * ratio) / 100]);
}
return weak;
"""


def test_every_control_has_a_name_and_every_id_is_single(browser: Chromium, files: list[Path]) -> None:
    browser.register()
    browser.choose(files[0])
    browser.find(".overlay-canvas:not([hidden])")
    for path in (None, "/keys", "/history", "/about"):
        if path:
            browser.open(path)
        nameless = browser.execute_script("""
            return Array.from(document.querySelectorAll("button, a[href], input:not([type=hidden]), img, progress"))
              .filter((e) => e.checkVisibility() && !(e.innerText || e.ariaLabel || e.labels?.[0]?.innerText
                             || e.hasAttribute("alt")))
              .map((e) => e.outerHTML);""")
        assert nameless == []
        ids = browser.execute_script("return Array.from(document.querySelectorAll('[id]'), (e) => e.id)")
        assert len(ids) == len(set(ids))


def test_page_weight(browser: Chromium) -> None:
    browser.register()
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    browser.open("/upload")
    time.sleep(1.0)
    size = browser.execute_script("""
        return performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
          .reduce((sum, e) => sum + e.decodedBodySize, 0);""")
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
    assert 40_000 < size < 100_000
