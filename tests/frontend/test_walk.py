"""What people come for, walked through in a real browser: accounts, codes, keys, uploads, results, history, the end."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.chromium import choose, elsewhere, needs_chromium, overlay_canvas, pixel, register, visitor
from tests.frontend.conftest import PASSWORD, Server, execute
from tests.frontend.test_identity import mailed_link

pytestmark = needs_chromium
NEW = "another four plain words"


@pytest.fixture
def page(server: Server, chromium: Browser) -> Iterator[Page]:
    with visitor(chromium, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def log_in(page: Page, email: str, password: str = PASSWORD) -> None:
    page.goto("/login")
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(password)
    press(page, "Log in")


def log_out(page: Page) -> None:
    press(page, "Log out")
    page.wait_for_url("/")


def accept(page: Page) -> list[str]:
    """Say yes to every question; returns what was asked."""
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", answer)
    return asked


def kept_images(page: Page) -> int:
    """How many images this browser keeps, once it had a moment to forget them."""
    page.wait_for_timeout(200)
    script = """new Promise((done) => { indexedDB.open("dermserve").onsuccess = ({ target }) => {
        const store = target.result.transaction("images").objectStore("images");
        store.count().onsuccess = (event) => { target.result.close(); done(event.target.result); };
    }; })"""
    return int(page.evaluate(script))


def heading(page: Page) -> str:
    return page.locator("h1").inner_text()


def test_a_forgotten_password(page: Page, server: Server) -> None:
    email = register(page)
    log_out(page)
    page.get_by_role("link", name="Log in").first.click()
    page.get_by_role("link", name="Forgot your password?").click()
    page.get_by_label("E-mail address").fill(email)
    press(page, "Send me a link")
    expect(page.get_by_role("status")).to_contain_text("a mail with a link is on its way")
    page.goto(f"/reset#{mailed_link(server, email)}")
    page.get_by_label("New password").fill(NEW)
    assert "#" not in page.url, "the link does not stay in the address"
    press(page, "Set password")
    page.wait_for_url("/login")
    log_in(page, email)
    expect(page.get_by_role("alert")).to_contain_text("not right")
    log_in(page, email, NEW)
    page.wait_for_url("/upload")


def test_a_second_factor(page: Page, server: Server) -> None:
    def code() -> str:
        # Each is good once; nobody waits half a minute for the next one here.
        elsewhere(execute, server, "UPDATE users SET totp_last_step = NULL WHERE email = $1", email)
        return pyotp.TOTP(letters).now()

    email = register(page)
    page.goto("/profile")
    page.locator("#offer-password").fill(PASSWORD)
    press(page, "Set up")
    expect(page.locator(".qr svg")).to_be_visible()
    page.locator("#code").fill("000000")
    press(page, "Turn on")
    expect(page.get_by_role("alert")).to_contain_text("not right")
    letters = page.locator(".secret").inner_text().replace(" ", "")
    page.locator("#code").fill(code())
    press(page, "Turn on")
    expect(page.get_by_role("status")).to_contain_text("From now on a code is asked for")
    log_out(page)
    log_in(page, email)
    assert heading(page) == "One more step"
    page.get_by_label("Six digits").fill(code())
    press(page, "Log in")
    page.wait_for_url("/upload")
    page.goto("/profile")
    page.get_by_label("Code, to turn it off").fill(code())
    press(page, "Turn off")
    expect(page.get_by_role("status")).to_contain_text("No code is asked for")


def test_password_and_sessions(page: Page, server: Server, chromium: Browser) -> None:
    email = register(page)
    with visitor(chromium, server.url) as other:
        log_in(other, email)
        other.wait_for_url("/upload")
        page.goto("/profile")
        rows = page.locator("table.history tbody tr")
        assert rows.count() == 2
        rows.filter(has_not_text="this one").get_by_role("button").click()
        expect(rows).to_have_count(1)
        other.goto("/history")
        assert other.url.endswith("/login?next=/history")
    page.get_by_label("Present password").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW)
    press(page, "Change password")
    expect(page.get_by_role("status")).to_contain_text("The password is changed")
    log_out(page)
    log_in(page, email, NEW)
    page.wait_for_url("/upload")


def test_a_key_with_one_scope(page: Page, server: Server, chromium: Browser, files: list[Path]) -> None:
    register(page)
    page.get_by_role("link", name="API keys").first.click()
    page.get_by_label("Name of a new key").fill("reader")
    page.get_by_label("send images").uncheck()
    page.get_by_label("change and delete them").uncheck()
    page.get_by_label("Good for").select_option("30")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Create key")
    key = page.locator("#new-key").inner_text()
    row = page.locator("table.history tbody tr")
    expect(row).to_contain_text("reading")
    expect(row).not_to_contain_text("sending")
    as_key = {"Authorization": f"Bearer {key}"}
    with visitor(chromium, server.url) as machine:
        assert machine.request.get("/v1/predictions", headers=as_key).status == 200
        sent = machine.request.post(
            "/v1/predictions", headers={**as_key, "Content-Type": "image/jpeg"}, data=files[0].read_bytes()
        )
        assert sent.status == 403
        page.goto("/keys")
        assert key not in page.content(), "it is shown once"
        asked = accept(page)
        press(page, "Revoke the key reader")
        expect(row).to_contain_text("revoked")
        assert len(asked) == 1
        page.wait_for_timeout(600)  # for so long a process trusts what it looked up
        assert machine.request.get("/v1/predictions", headers=as_key).status == 401


def test_an_image_with_what_is_said_about_it(page: Page, files: list[Path]) -> None:
    register(page)
    page.get_by_text("Lesion, body site and note").click()
    page.get_by_label("Lesion", exact=True).fill("left forearm 1")
    page.get_by_label("Body site").select_option("upper extremity")
    page.get_by_label("Note").fill("naïve, 4 mm")
    choose(page, files[0], files[1])
    page.locator(".item-status a").first.click()
    facts = page.locator(".result-facts")
    for words in ("left forearm 1", "upper extremity", "naïve, 4 mm"):
        expect(facts).to_contain_text(words)
    facts.get_by_role("link", name="left forearm 1").click()
    assert heading(page) == "left forearm 1"
    assert page.locator(".plot-marks circle").count() == 2
    for box in page.get_by_role("checkbox").all():
        box.check()
    press(page, "Compare the chosen ones")
    assert heading(page) == "Compare"
    assert page.locator(".overlay-file").count() == 2
    for file in files[:2]:
        card = page.locator(".compared .card", has_text=file.name)
        card.locator(".overlay-file").set_input_files(file)
        expect(card.locator(".overlay-canvas")).to_be_visible()
    page.goto("/lesions")
    expect(page.locator("table.history tbody tr")).to_contain_text(["left forearm 1"])


def test_a_pasted_image(page: Page) -> None:
    register(page)
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(300, 200);
        const context = canvas.getContext("2d");
        context.fillStyle = "#d9b8a6";
        context.fillRect(0, 0, 300, 200);
        const png = await canvas.convertToBlob({ type: "image/png" });
        await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
    }""")
    page.keyboard.press("Control+V")
    expect(page.locator("#progress")).to_have_text(re.compile("^1 of 1"))
    expect(page.locator(".item-status")).to_contain_text("Melanoma")


def test_one_of_several_cancelled_and_tried_again(page: Page, server: Server, files: list[Path]) -> None:
    register(page)
    server.stand_in.delay_s = 0.7
    page.set_input_files("#files", files)
    press(page, f"Cancel {files[3].name}")
    item = page.locator(".item").filter(has_text=files[3].name)
    expect(item).to_contain_text("Cancelled")
    progress = page.locator("#progress")
    expect(progress).to_have_text(re.compile("^4 of 4"))
    assert page.locator(".item-status").filter(has_text="Melanoma").count() == 3
    press(page, f"Try {files[3].name} again")
    expect(item).to_contain_text("Melanoma")
    expect(progress).to_have_text(re.compile("^4 of 4"))
    page.goto("/history")
    assert page.locator("table.history tbody tr").count() == 4


def test_the_report_is_one_page_of_paper(page: Page, files: list[Path]) -> None:
    register(page)
    choose(page, files[0])
    page.locator(".item-status a").click()
    page.locator(".overlay-file").set_input_files(files[0])
    overlay_canvas(page)
    page.emulate_media(media="print")
    for hidden in ("nav", "footer", ".print", ".after", ".overlay-controls label"):
        expect(page.locator(hidden).first).to_be_hidden()
    for shown in (".notice", ".decision", ".diagnoses", ".result-facts", ".overlay-canvas", ".overlay-legend"):
        expect(page.locator(shown)).to_be_visible()
    paper = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) == 1


def test_history_is_searched_sorted_and_downloaded(page: Page, files: list[Path], tmp_path: Path) -> None:
    register(page)
    page.get_by_text("Lesion, body site and note").click()
    choose(page, *files[:3])
    page.get_by_label("Body site").select_option("lower extremity")
    choose(page, files[3])
    page.goto("/history")
    names, figures = page.locator("tbody th[scope=row] a"), page.locator("td[data-label=Melanoma]")
    expect(names).to_have_count(4)
    page.get_by_label("Order").select_option("melanoma")
    press(page, "Show")
    page.wait_for_url("**sort=melanoma**")
    shares = [float(text.strip("<>\u00a0%")) for text in figures.all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    page.get_by_label("Body site").select_option("lower extremity")
    press(page, "Show")
    expect(names).to_have_text([files[3].name])
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    download.value.save_as(tmp_path / "history.csv")
    lines = list(csv.reader((tmp_path / "history.csv").open()))
    assert [line[0] for line in lines] == ["filename", files[3].name]
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    download.value.save_as(tmp_path / "history.json")
    [stored] = json.loads((tmp_path / "history.json").read_text())
    assert stored["context"]["body_site"] == "lower extremity"
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("Search").fill("no such file")
    page.get_by_label("Search").press("Enter")
    expect(page.locator(".empty")).to_contain_text("No result is like that")


def test_whoever_runs_the_place(page: Page, server: Server) -> None:
    email = register(page)
    elsewhere(execute, server, "UPDATE users SET role = 'admin' WHERE email = $1", email)
    page.goto("/admin")
    name = f"Hospital of {email[:6]}"
    page.get_by_label("New organisation").fill(name)
    press(page, "Add")
    organisation = page.get_by_role("form", name=name)
    organisation.get_by_label("Results are kept, days").fill("90")
    organisation.get_by_role("button").click()
    page.get_by_role("searchbox").fill(email)
    press(page, "Search")
    member = page.get_by_role("form", name=email)
    member.get_by_label("Organisation").select_option(name)
    member.get_by_role("button").click()
    page.goto("/profile")
    facts = page.locator("dl.facts").first
    expect(facts).to_contain_text(name)
    expect(facts).to_contain_text("90 days")
    page.get_by_role("link", name="Audit").click()
    expect(page.locator("table tbody tr").first).to_be_visible()
    press(page, "Check the whole chain")
    expect(page.get_by_role("status")).to_contain_text("whole")


def test_in_three_languages(page: Page, files: list[Path]) -> None:
    register(page)
    for own_name, language, words in (
        ("Español", "es", "Subir imágenes dermatoscópicas"),
        ("Català", "ca", "Pugeu imatges dermatoscòpiques"),
    ):
        page.get_by_role("link", name=own_name).click()
        assert page.locator("html").get_attribute("lang") == language
        assert heading(page) == words
        choose(page, files[0])
        assert re.search(r"\d,\d\s%", page.locator(".item-status").first.inner_text())
        expect(page.locator(".diagnoses h3")).not_to_have_text("Nine diagnoses")


def test_images_kept_in_this_browser(page: Page, files: list[Path]) -> None:
    email = register(page)
    page.get_by_label("Keep my images in this browser").check()
    choose(page, files[1])
    page.locator(".item-status a").click()
    overlay_canvas(page)
    assert pixel(page, 0.5, 0.5)[3] == 255
    result = page.url
    log_out(page)
    log_in(page, email)
    page.wait_for_url("/upload")
    expect(page.get_by_label("Keep my images in this browser")).not_to_be_checked()
    page.goto(result)
    expect(page.locator(".overlay-choose")).to_be_visible()
    expect(page.locator(".overlay-canvas")).to_be_hidden()


def test_the_end_of_an_account(page: Page, files: list[Path]) -> None:
    email = register(page)
    page.get_by_label("Keep my images in this browser").check()
    choose(page, files[0])
    result = page.locator(".item-status a").get_attribute("href")
    assert kept_images(page) == 1
    page.goto("/profile")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert json.loads(Path(download.value.path()).read_text())["account"]["email"] == email
    asked = accept(page)
    page.get_by_text("Delete this account").click()
    page.locator("#delete-password").fill("not the password")
    press(page, "Delete account")
    expect(page.get_by_role("alert")).to_contain_text("not right")
    page.get_by_text("Delete this account").click()
    page.locator("#delete-password").fill(PASSWORD)
    press(page, "Delete account")
    page.wait_for_url("/")
    assert len(asked) == 2
    assert kept_images(page) == 0, "images kept in the browser go with the account"
    log_in(page, email)
    expect(page.get_by_role("alert")).to_contain_text("not right")
    register(page)
    assert page.request.get(result or "").status == 404


def test_keyboard_alone_from_login_to_result(page: Page, files: list[Path]) -> None:
    email = register(page)
    log_out(page)
    focused = page.locator(":focus")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if focused.count() and focused.evaluate("(element, css) => element.matches(css)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {selector}")

    page.goto("/")
    tab_to('a[href="/login"]')
    page.keyboard.press("Enter")
    expect(page.locator("#email")).to_be_focused()
    page.keyboard.type(email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("/upload")
    tab_to("#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(files[2])
    expect(page.locator(".item-status")).to_contain_text("Melanoma")
    overlay_canvas(page)
    tab_to(".overlay-opacity")
    covered = pixel(page, 0.65, 0.45)
    page.keyboard.press("Home")
    assert pixel(page, 0.65, 0.45) != covered
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.activeElement.blur()")
    page.locator(".item-name").focus()
    tab_to(".item-status a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/predictions/**")
    expect(page.locator(".decision h2")).to_be_visible()
