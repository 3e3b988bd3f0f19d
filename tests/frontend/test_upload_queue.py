"""The upload page when things go otherwise: names taken already, a session that ends, a browser that forbids storage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from tests.chromium import choose, needs_chromium, overlay_canvas, register
from tests.frontend.conftest import PASSWORD, Server

pytestmark = needs_chromium
QUEUED = 10
FORBID_STORAGE = """
    Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } });
    Object.defineProperty(window, "indexedDB", { get() { throw new DOMException("denied", "SecurityError"); } });"""


@pytest.fixture
def queue(jpegs: list[bytes], tmp_path: Path) -> list[Path]:
    """More images than are sent at once; they differ in a comment (JPEG segment COM)."""
    paths = [tmp_path / f"{number}.jpg" for number in range(QUEUED)]
    for number, path in enumerate(paths):
        path.write_bytes(jpegs[0][:2] + b"\xff\xfe\x00\x06%04d" % number + jpegs[0][2:])
    return paths


def end_session_in_the_middle(page: Page, server: Server, queue: list[Path]) -> None:
    server.stand_in.delay_s = 0.5
    page.set_input_files("#files", queue)
    expect(page.locator(".item-status").filter(has_text="Melanoma")).not_to_have_count(0)
    page.context.clear_cookies()
    expect(page.locator("#paused")).to_contain_text("The uploads are paused, because your session has ended")
    assert page.locator(".item-status").filter(has_text="Melanoma").count() < QUEUED


def log_in(page: Page, email: str) -> None:
    page.locator("#email").fill(email)
    page.locator("#password").fill(PASSWORD)
    page.locator("#password").press("Enter")


def sent(page: Page) -> list[Request]:
    """Every upload from now on."""
    found: list[Request] = []
    page.on("request", lambda request: found.append(request) if request.method == "POST" else None)
    return found


def test_typed_name_says_what_it_joins(page: Page, files: list[Path]) -> None:
    register(page)
    page.get_by_text("Lesion, body site and note").click()
    name, site, known = (
        page.get_by_label("Lesion", exact=True),
        page.get_by_label("Body site"),
        page.locator("#lesion-known"),
    )
    warning = page.locator("#site-warning")
    name.fill("left arm 1")
    expect(known).to_contain_text("A new lesion")
    site.select_option("upper extremity")
    choose(page, files[0])
    expect(page.locator(".item-lesion")).to_have_text("Lesion: left arm 1, upper extremity")
    expect(known).to_contain_text(re.compile(r"Joins 1 image since .* Body site: upper extremity\."))
    expect(warning).to_be_hidden()
    site.select_option("palms/soles")
    expect(warning).to_be_visible()
    expect(warning).to_contain_text("upper extremity, not palms/soles")
    name.fill("left arm 2")
    expect(warning).to_be_hidden()
    expect(known).to_contain_text("A new lesion")
    # The same image again: it stays where it is, and the page does not pretend otherwise.
    choose(page, files[0])
    expect(page.locator(".item-lesion").first).to_have_text("Lesion: left arm 1, upper extremity")


def test_name_that_could_not_be_looked_up(page: Page) -> None:
    register(page)
    page.get_by_text("Lesion, body site and note").click()
    page.context.route("**/lesions/named", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Lesion", exact=True).fill("arm")
    expect(page.locator("#lesion-known")).to_contain_text("could not be checked")


def test_another_name_on_the_page_of_a_result(page: Page, files: list[Path]) -> None:
    register(page)
    page.get_by_text("Lesion, body site and note").click()
    page.get_by_label("Lesion", exact=True).fill("arm")
    page.get_by_label("Body site").select_option("upper extremity")
    choose(page, files[0])
    page.get_by_label("Lesion", exact=True).fill("leg")
    page.get_by_label("Body site").select_option("lower extremity")
    choose(page, files[1])
    page.locator(".item-status a").first.click()
    page.wait_for_url("**/predictions/*")
    page.get_by_text("Lesion, body site and note").click()
    known = page.locator("#lesion-known")
    expect(known).to_be_hidden()
    page.get_by_label("Lesion", exact=True).fill("arm")
    expect(known).to_contain_text("Joins 1 image since")
    expect(page.locator("#site-warning")).to_contain_text("upper extremity, not lower extremity")


def test_session_that_ends_in_the_middle(page: Page, server: Server, queue: list[Path]) -> None:
    email = register(page)
    end_session_in_the_middle(page, server, queue)
    paused = page.locator("#paused")
    go_on = paused.get_by_role("button", name="Go on")
    go_on.click()
    expect(paused).to_contain_text("You are not logged in yet")
    with page.context.expect_page() as opened:
        paused.get_by_role("link", name="Log in in another tab").click()
    log_in(opened.value, email)
    opened.value.wait_for_url("**/")
    opened.value.close()
    go_on.click()
    expect(page.locator("#progress")).to_have_text(re.compile(f"^{QUEUED} of {QUEUED}"))
    expect(paused).to_be_hidden()
    expect(page.locator(".item-status").filter(has_text="Melanoma")).to_have_count(QUEUED)
    page.goto("/history")
    expect(page.locator("table.history tbody tr")).to_have_count(QUEUED)


def test_another_account_does_not_go_on(page: Page, server: Server, queue: list[Path]) -> None:
    email = register(page)
    end_session_in_the_middle(page, server, queue)
    paused = page.locator("#paused")
    other = page.context.new_page()
    register(other)
    paused.get_by_role("button", name="Go on").click()
    expect(paused).to_contain_text("Another account is logged in now. These images do not belong into its history")
    expect(paused).to_contain_text(email)
    other.goto("/history")
    expect(other.locator(".empty")).to_be_visible()
    other.get_by_role("button", name="Log out").click()
    other.goto("/login")
    log_in(other, email)
    other.wait_for_url("**/upload")
    paused.get_by_role("button", name="Go on").click()
    expect(page.locator("#progress")).to_have_text(re.compile(f"^{QUEUED} of {QUEUED}"))
    other.goto("/history")
    expect(other.locator("table.history tbody tr")).to_have_count(QUEUED)


def test_account_changed_in_another_tab_gets_none_of_the_queue(page: Page, files: list[Path]) -> None:
    register(page)
    other = page.context.new_page()
    other.goto("/history")
    other.get_by_role("button", name="Log out").click()
    register(other)
    page.set_input_files("#files", files[:2])
    expect(page.locator("#paused")).to_be_visible()
    expect(page.locator(".item-status").first).to_have_text("Paused")
    other.goto("/history")
    expect(other.locator(".empty")).to_be_visible()


def test_browser_that_forbids_storage(page: Page, files: list[Path]) -> None:
    page.add_init_script(FORBID_STORAGE)
    register(page)
    keep = page.get_by_label("Keep my images in this browser")
    keep.click()
    expect(page.locator("#keep-status")).to_contain_text("does not let pages keep anything")
    expect(keep).not_to_be_checked()
    choose(page, files[0])
    overlay_canvas(page)
    page.locator(".item-status a").click()
    page.wait_for_url("**/predictions/*")
    page.wait_for_load_state()  # its scripts answer the choice of a file
    page.locator(".overlay-file").set_input_files(files[0])
    overlay_canvas(page)
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("/")
    page.goto("/login")
    expect(page.locator("h1")).to_be_visible()


def test_cancelled_before_a_retry_and_tried_again_is_sent_once(page: Page, server: Server, files: list[Path]) -> None:
    register(page)
    server.stand_in.down = True
    page.set_input_files("#files", files[0])
    status = page.locator(".item-status")
    expect(status).to_contain_text("Trying again in")
    [seconds] = re.findall(r"in (\d+) s", status.inner_text())
    uploads = sent(page)
    page.get_by_role("button", name="Cancel").click()
    server.stand_in.down = False
    server.stand_in.delay_s = int(seconds) + 1  # so that a forgotten loop would wake while this one is under way
    page.get_by_role("button", name="Try").click()
    expect(status).to_contain_text("Melanoma")
    expect(page.locator("#progress")).to_have_text(re.compile("^1 of 1"))
    assert len(uploads) == 1
    assert server.stand_in.calls == [False, False]
