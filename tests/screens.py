"""Pictures of every page for the documents: `python -m tests.screens docs/images/pages`.

Starts the real stack, fills an account with drawn lesions, and photographs each page in light and dark at 1280 pixels,
and some at the width of a phone. Nothing in them is of a person.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

from dermserve import sample
from frontend.database import URL_FILE
from tests.chromium import choose, elsewhere, launched, overlay_canvas, visitor
from tests.frontend.conftest import PASSWORD
from tests.system.stack import Stack

EMAIL = "ana@clinic.example"
LESION_SEED = 3
GROWTH = (1.0, 0.93, 0.86, 0.78)
LONGEST = 1250  # pixels of a page that are shown
COLOURS, VIVID_COLOURS = 32, 12
VIVID = 70  # how far apart the channels of a colour are that is kept for itself
SCALE = 0.75  # of a page with a photograph
JPEG_QUALITY = 66
PHONE = ("home", "upload", "result", "history", "lesion", "profile")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dermserve-screens-") as state, launched() as browser:
        stack = Stack(Path(state) / "state")
        stack.start()
        try:
            images = draw(Path(state))
            paths = fill(browser, stack, images)
            for scheme in ("light", "dark"):
                photograph(browser, stack, folder, images, paths, scheme=scheme, width=1280)
            photograph(browser, stack, folder, images, paths, scheme="light", width=360)
        finally:
            stack.stop()


def draw(folder: Path) -> list[Path]:
    """One lesion that grows over four visits, and others."""
    growing = Image.fromarray(sample.draw(LESION_SEED))
    width, height = growing.size
    pictures = []
    for share in GROWTH:
        x, y = width * (1 - share) / 2, height * (1 - share) / 2
        box = (round(x), round(y), round(width - x), round(height - y))
        pictures.append(growing.crop(box).resize(growing.size, Image.Resampling.LANCZOS))
    pictures += [Image.fromarray(sample.draw(seed)) for seed in (5, 8, 11, 14)]
    paths = [
        folder / f"{name}.jpg" for name in (*(f"forearm-{n}" for n in range(1, 5)), "back", "calf", "scalp", "palm")
    ]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path, quality=sample.QUALITY)
    return paths


def fill(browser: Browser, stack: Stack, images: list[Path]) -> dict[str, str]:
    """Make an administrator with results; returns the pages to photograph by name."""
    made = stack.run("admin", "create-user", EMAIL, "--admin", "--password", PASSWORD)
    assert made.returncode == 0, made.stderr
    with visitor(browser, stack.url) as page:
        log_in(page)
        page.locator("details.context summary").click()
        for number, image in enumerate(images):
            growing = number < len(GROWTH)
            page.locator("#lesion").fill("left forearm 1" if growing else "")
            page.locator("#body_site").select_option("upper extremity" if growing else "posterior torso")
            choose(page, image)
        page.goto("/keys")
        page.locator("#name").fill("image gateway")
        page.locator("#key-password").fill(PASSWORD)
        page.locator("form.card button").click()
        page.goto("/admin")
        page.locator("#new-organisation").fill("Skin clinic")
        page.locator("#new-organisation").press("Enter")
        elsewhere(spread_over_months, (stack.state_dir / URL_FILE).read_text().strip())
        page.goto("/lesions")
        lesion = page.locator("tbody th a").get_attribute("href") or ""
        page.goto(lesion)
        visits = [link.get_attribute("href") or "" for link in page.locator("tbody th a").all()]
    ids = [visit.rpartition("/")[2] for visit in (visits[0], visits[-1])]
    return {
        "upload": "/upload",
        "result": visits[0],
        "history": "/history",
        "lesions": "/lesions",
        "lesion": lesion,
        "compare": f"/compare?id={ids[0]}&id={ids[1]}",
        "keys": "/keys",
        "profile": "/profile",
        "admin": "/admin",
        "audit": "/admin/audit",
        "home": "/",
        "about": "/about",
        "privacy": "/privacy",
        "terms": "/terms",
        "docs": "/docs",
    }


def spread_over_months(database_url: str) -> None:
    """Let the results lie a few weeks apart, as those of a real account do."""
    import asyncio

    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute(
                "UPDATE predictions SET created_at = created_at - (interval '37 days' * (SELECT count(*) FROM predictions p"
                " WHERE p.created_at > predictions.created_at))"
            )
        finally:
            await connection.close()

    asyncio.run(run())


def photograph(
    browser: Browser,
    stack: Stack,
    folder: Path,
    images: list[Path],
    paths: dict[str, str],
    *,
    scheme: str,
    width: int,
) -> None:
    """Every page in one colour scheme; at the width of a phone only some."""
    suffix = "phone" if width < 500 else scheme
    with visitor(
        browser, stack.url, viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=width < 500
    ) as page:
        if suffix != "phone":
            for name in ("login", "register", "forgot"):
                page.goto(f"/{name}")
                save(page, folder / f"{name}-{suffix}.png")
        log_in(page)
        for name, path in paths.items():
            if suffix == "phone" and name not in PHONE:
                continue
            page.goto(path)
            if name == "upload":
                choose(page, *images[4:7])
                choose(page, images[0])
                overlay_canvas(page)
            if name in ("result", "compare"):
                shown = [images[3]] if name == "result" else [images[0], images[3]]
                for number, image in enumerate(shown):
                    page.locator(".overlay-file").nth(number).set_input_files(image)
                    page.locator(".overlay-canvas").nth(number).wait_for(state="visible")
            if name == "profile":
                page.get_by_role("button", name="Set up").click()
            save(page, folder / f"{name}-{suffix}.png")


def log_in(page: Page) -> None:
    page.goto("/login")
    page.locator("#email").fill(EMAIL)
    page.locator("#password").fill(PASSWORD)
    page.locator("#password").press("Enter")
    page.wait_for_url("**/upload")


def save(page: Page, path: Path) -> None:
    """The page from its top, in a small file: few colours, or JPEG where there is a photograph."""
    page.evaluate("scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot = shot.crop((0, 0, shot.width, min(shot.height, LONGEST)))
    if page.locator(".overlay-canvas:visible").count():
        if shot.width > 1000:
            shot = shot.resize((round(shot.width * SCALE), round(shot.height * SCALE)), Image.Resampling.LANCZOS)
        shot.save(path.with_suffix(".jpg"), quality=JPEG_QUALITY, optimize=True)
        return
    shot.quantize(palette=palette(shot), dither=Image.Dither.NONE).save(path, optimize=True)


def palette(shot: Image.Image) -> Image.Image:
    """The colours to keep: mostly those of large areas, but warnings, which are small, keep theirs."""
    pixels = np.asarray(shot, np.int16).reshape(-1, 3)
    vivid = pixels[np.ptp(pixels, axis=1) > VIVID].astype(np.uint8)
    kept = [shot.quantize(COLOURS - VIVID_COLOURS, Image.Quantize.MEDIANCUT)]
    if len(vivid):
        kept.append(Image.fromarray(vivid[None]).quantize(VIVID_COLOURS, Image.Quantize.MEDIANCUT))
    colours = Image.new("P", (1, 1))
    colours.putpalette([value for one in kept for value in (one.getpalette() or [])[: 3 * len(one.getcolors() or [])]])
    return colours


if __name__ == "__main__":
    main(Path(sys.argv[1]))
