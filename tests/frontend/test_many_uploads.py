"""Two hundred images in one go through the upload page: each answered, none mixed up, memory flat."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import CDPSession, Page, expect

from frontend.i18n import percent
from tests.chromium import choose, needs_chromium, register

pytestmark = needs_chromium
COUNT, FIRST = 200, 20
MIB = 2**20
# Counts how many pictures are being decoded at the same time.
WATCH = """
    window.decoding = { now: 0, most: 0 };
    const decode = window.createImageBitmap;
    window.createImageBitmap = async (...given) => {
      decoding.most = Math.max(decoding.most, decoding.now += 1);
      try { return await decode(...given); } finally { decoding.now -= 1; }
    };"""


@pytest.fixture
def many(jpegs: list[bytes], tmp_path: Path) -> list[Path]:
    """Drawn images that differ in a comment (JPEG segment COM), so that each has a fingerprint and figures of its own."""
    paths = [tmp_path / f"lesion {number:03d}.jpg" for number in range(FIRST + COUNT)]
    for number, path in enumerate(paths):
        data = jpegs[number % len(jpegs)]
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x06%04d" % number + data[2:])
    return paths


def heap(devtools: CDPSession) -> int:
    """Bytes that the page's scripts hold."""
    devtools.send("HeapProfiler.collectGarbage")
    return int(devtools.send("Runtime.getHeapUsage")["usedSize"])


def test_two_hundred_at_once(page: Page, many: list[Path]) -> None:
    server = psutil.Process()  # it runs in this process
    page.add_init_script(WATCH)
    register(page)
    devtools = page.context.new_cdp_session(page)
    choose(page, *many[:FIRST])
    held, resident = heap(devtools), server.memory_info().rss

    page.set_input_files("#files", many[FIRST:])
    expect(page.locator("#progress")).to_have_text(re.compile(f"^{FIRST + COUNT} of {FIRST + COUNT}"), timeout=120_000)

    shown = page.locator(".item").evaluate_all("""(items) => items.map((item) => [
        item.querySelector(".item-name").textContent,
        item.querySelector(".item-status").textContent,
        item.querySelector(".item-status a")?.getAttribute("href")])""")
    stored = results(page)
    assert len(shown) == len(stored) == len(many)
    for name, status, link in shown:
        [path] = [path for path in many if path.name == name]
        result = stored[hashlib.sha256(path.read_bytes()).hexdigest()]
        assert link == f"/predictions/{result['id']}"
        assert f"Melanoma {percent(result['probabilities']['melanoma'], 'en')}" in status
        assert ("Referral suggested" in status) == result["decision"]["refer"]
    assert page.evaluate("decoding.most") == 1, "previews are decoded one by one"
    assert heap(devtools) - held < 10 * MIB
    assert server.memory_info().rss - resident < 60 * MIB


def results(page: Page) -> dict[str, dict[str, object]]:
    """Every stored result of who is logged in, by the SHA-256 of its image."""
    found: dict[str, dict[str, object]] = {}
    cursor: str | None = ""
    while cursor is not None:
        answer = page.request.get("/v1/predictions", params={"limit": 100, **({"cursor": cursor} if cursor else {})})
        body = answer.json()
        found |= {one["image"]["sha256"]: one for one in body["items"]}
        cursor = body["next_cursor"]
    return found
