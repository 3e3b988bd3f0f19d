"""The upload page and what follows from it, in a real Chromium against a real uvicorn and PostgreSQL."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.chromium import choose, needs_chromium, overlay_canvas, pixel, register, sideways, visitor
from tests.frontend.conftest import Server

pytestmark = needs_chromium


def result_of(page: Page) -> str:
    """The address of the only result on the upload page."""
    return page.locator(".item-status a").get_attribute("href") or ""


def test_upload_shows_the_result_in_place(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[0])
    expect(page.locator(".item-status")).to_contain_text("Melanoma")
    overlay_canvas(page)
    expect(page.locator(".result-figures .bars > div")).to_have_count(4)
    expect(page.locator(".diagnoses .bars > div")).to_have_count(9)
    covered = pixel(page, 0.65, 0.45)
    page.locator(".overlay-opacity").fill("0")
    bare = pixel(page, 0.65, 0.45)
    assert covered != bare
    assert bare[3] == 255


def test_same_image_later_and_only_the_same(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[1])
    page.goto("/history")
    page.locator("tbody th a").click()
    page.wait_for_load_state()  # its scripts answer the choice of a file
    chooser, status = page.locator(".overlay-file"), page.locator(".overlay-status")
    chooser.set_input_files(files[2])
    expect(status).to_contain_text("another file")
    expect(page.locator(".overlay-canvas")).to_be_hidden()
    chooser.set_input_files(files[1])
    overlay_canvas(page)
    expect(status).to_have_text("")


def test_many_files_and_clear_words_for_each_refusal(page: Page, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear colleague")
    (tmp_path / "cut.jpg").write_bytes(files[0].read_bytes()[:5000])
    (tmp_path / "nothing.png").touch()
    bad = [tmp_path / name for name in ("letter.jpg", "cut.jpg", "nothing.png")]
    register(page)
    choose(page, *files, *bad)
    words = {
        item.locator(".item-name").inner_text(): item.locator(".item-status").inner_text()
        for item in page.locator(".item").all()
    }
    assert "not a JPEG, PNG or DICOM" in words["letter.jpg"]
    assert "damaged or incomplete" in words["cut.jpg"]
    assert "empty" in words["nothing.png"]
    assert all("Melanoma" in words[path.name] for path in files)
    assert page.locator(".item.failed").count() == 3
    page.goto("/history")
    expect(page.locator("table.history tbody tr")).to_have_count(len(files))


def test_same_file_twice_is_one_result(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[0])
    choose(page, files[0])
    links = [link.get_attribute("href") for link in page.locator(".item-status a").all()]
    assert len(links) == 2
    assert len(set(links)) == 1
    # The one sent last stands on top; that it was a repeat is said there and only there.
    said = ["analysed before" in text for text in page.locator(".item-status").all_inner_texts()]
    assert said == [True, False]


def test_dropped_file(page: Page, files: list[Path]) -> None:
    register(page)
    x, y = page.evaluate(
        "(({ x, y, width }) => [x + width / 2, y + 40])(document.querySelector('.drop').getBoundingClientRect())"
    )
    data = {"items": [], "files": [str(files[3])], "dragOperationsMask": 1}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
    expect(page.locator("#progress")).to_have_text(re.compile("^1 of 1"))
    expect(page.locator(".item-name")).to_have_text(files[3].name)
    expect(page.locator(".item-status")).to_contain_text("Melanoma")


def test_banner_while_the_model_server_is_away_and_upload_afterwards(
    page: Page, server: Server, files: list[Path]
) -> None:
    register(page)
    banner, status = page.locator("#not-ready"), page.locator(".item-status")
    expect(banner).to_be_hidden()
    server.stand_in.down = True
    page.goto("/upload")
    expect(banner).to_be_visible()
    expect(banner).to_contain_text("not answering at the moment")
    page.set_input_files("#files", files[0])
    expect(status).to_contain_text("Trying again")
    server.stand_in.down = False
    expect(banner).to_be_hidden()
    expect(status).to_contain_text("Melanoma")


def test_delete_asks_first(page: Page, files: list[Path]) -> None:
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss() if len(asked) == 1 else dialog.accept()

    page.on("dialog", answer)
    register(page)
    choose(page, files[0])
    page.goto("/history")
    rows, delete = page.locator("table.history tbody tr"), page.locator(".row-action button")
    delete.click()
    assert rows.count() == 1
    delete.click()
    expect(page.locator(".empty")).to_be_visible()
    expect(rows).to_have_count(0)
    assert len(asked) == 2
    assert files[0].name in asked[0]


def test_focus_is_shown_wherever_tab_leads(page: Page) -> None:
    """Skip link, form and file field can be reached with Tab, and show where the focus is."""

    def tab() -> tuple[str, str]:
        page.keyboard.press("Tab")
        name, text, outline = page.evaluate(
            "(({ id, innerText }) => [id, innerText, getComputedStyle(document.activeElement).outlineStyle])"
            "(document.activeElement)"
        )
        assert outline == "solid" or name == "files"
        return name, text

    page.goto("/about")
    assert tab()[1] == "Skip to content"
    assert page.locator(".skip").bounding_box()["y"] > 0  # type: ignore[index]
    page.goto("/register")
    expect(page.locator("#email")).to_be_focused()
    assert tab()[0] == "password"
    assert tab()[1] == "Create account"
    register(page)
    assert any(tab()[0] == "files" for _ in range(12))
    assert page.evaluate("getComputedStyle(document.querySelector('.drop')).outlineStyle") == "solid"


def test_phone_width_has_no_sideways_scrolling(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[0])
    result = result_of(page)
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", "/upload", "/history", "/keys", "/about", "/docs", result):
        page.goto(path)
        assert (path, sideways(page)) == (path, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, files: list[Path], scheme: str) -> None:
    """Text against what lies behind it: at least 4.5 to 1 (WCAG 2.2, 1.4.3), on every page."""
    register(page)
    choose(page, files[0])
    result = result_of(page)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path in ("/", "/upload", "/history", "/keys", "/about", "/docs", result, "/nothing"):
        page.goto(path)
        weak = page.evaluate(_WEAK_CONTRAST)
        assert weak == [], f"{path}: {json.dumps(weak)}"


_WEAK_CONTRAST = """() => {
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
}"""


def test_every_control_has_a_name_and_every_id_is_single(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[0])
    overlay_canvas(page)
    for path in (None, "/keys", "/history", "/about"):
        if path:
            page.goto(path)
        nameless = page.evaluate("""
            Array.from(document.querySelectorAll("button, a[href], input:not([type=hidden]), img, progress"))
              .filter((e) => e.checkVisibility() && !(e.innerText || e.ariaLabel || e.labels?.[0]?.innerText
                             || e.hasAttribute("alt")))
              .map((e) => e.outerHTML)""")
        assert nameless == []
        ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), (e) => e.id)")
        assert len(ids) == len(set(ids))


def test_page_weight(server: Server, chromium: Browser, page: Page) -> None:
    """What somebody downloads who opens the upload page for the first time."""
    register(page)
    with visitor(chromium, server.url, storage_state=page.context.storage_state()) as first_time:
        first_time.goto("/upload")
        first_time.locator(".samples img").last.scroll_into_view_if_needed()
        first_time.evaluate("Promise.all(Array.from(document.images, (image) => image.decode()))")
        size = first_time.evaluate("""
            performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
              .reduce((sum, e) => sum + e.decodedBodySize, 0)""")
    assert 40_000 < size < 100_000
