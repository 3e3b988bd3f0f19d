"""A real Chromium, headless, for the tests that look at pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.frontend.conftest import PASSWORD, new_email

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"), reason="chromium and chromedriver are not installed"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


class Chromium(webdriver.Chrome):
    """A fresh profile; `find` waits."""

    def __init__(self, base_url: str, profile: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        super().__init__(options=options, service=Service(DRIVER))
        self.base_url = base_url

    def open(self, path: str) -> None:
        self.get(self.base_url + path)

    def until(self, condition: Callable[[], object], what: str) -> None:
        WebDriverWait(self, 15, 0.05).until(lambda _: condition(), what)

    def find(self, css: str) -> WebElement:
        self.until(lambda: self.find_elements(By.CSS_SELECTOR, css), css)
        return self.find_element(By.CSS_SELECTOR, css)

    def count(self, css: str) -> int:
        return len(self.find_elements(By.CSS_SELECTOR, css))

    def at(self, path: str) -> None:
        self.until(lambda: self.current_url == self.base_url + path, path)

    def register(self) -> None:
        self.open("/register")
        self.find("#email").send_keys(new_email())
        self.find("#password").send_keys(PASSWORD, Keys.ENTER)
        self.at("/upload")

    def choose(self, *files: Path) -> None:
        done = int((self.find("#progress").text or "0").split()[0])
        self.find("#files").send_keys("\n".join(map(str, files)))
        expected = f"{done + len(files)} of"
        self.until(lambda: self.find("#progress").text.startswith(expected), "all uploads answered")

    def complaints(self) -> list[str]:
        """What the browser logged, apart from what the tests themselves provoke."""
        provoked = ("the server responded", "getImageData")
        messages = [entry["message"] for entry in self.get_log("browser")]
        return [message for message in messages if not any(words in message for words in provoked)]

    def pixel(self, x: float, y: float) -> list[int]:
        """RGBA of the overlay canvas at fractions of its size."""
        script = """
            const canvas = document.querySelector(".overlay-canvas");
            const at = [arguments[0] * canvas.width, arguments[1] * canvas.height].map(Math.floor);
            return Array.from(canvas.getContext("2d").getImageData(...at, 1, 1).data);"""
        return list(self.execute_script(script, x, y))
