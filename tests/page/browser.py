"""Debian's chromium, driven by selenium, and what a person does on the page with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WIDE = 1400


def executable(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.fail(f"the page's tests need {names[0]}: apt-get install -y chromium chromium-driver", pytrace=False)


def start_chrome(profile: Path) -> Chrome:
    """A headless chromium with the fresh user data folder `profile`; the caller quits it."""
    options = ChromeOptions()
    options.binary_location = executable("chromium", "chromium-browser", "google-chrome")
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(service=ChromeService(executable("chromedriver")), options=options)
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    return driver


class Page:
    """What a person does on the page and what they see."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self.resize(WIDE)
        driver.get_log("browser")  # forget what other tests left
        driver.get(url)
        # What it reads last is the calibration, told together with the versions.
        self.wait(lambda: self.one("#server").text or self.error != "", "the server's models and versions")

    def resize(self, width: int, scheme: str = "light") -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        try:
            return WebDriverWait(self.driver, timeout_s, poll_frequency=0.05).until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"waited {timeout_s} s for {what}; error on the page: {self.error!r}; log: {self.log()}")

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    @property
    def error(self) -> str:
        return self.js("return document.getElementById('error').textContent")

    def set(self, name: str, value: Any) -> None:
        """Types `value` into the field called `name`, with the events that typing has."""
        self.js(
            "const f = document.getElementById('form').elements[arguments[0]]; f.value = arguments[1];"
            "f.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            str(value),
        )

    def start(self, scenario: str | None = None) -> None:
        if scenario:
            self.set("model", scenario)
        self.one("#generate").click()

    def generate(self, scenario: str | None = None, timeout_s: float = 60) -> None:
        """Presses Generate and waits for the end."""
        self.start(scenario)
        self.wait(lambda: self.one("#generate").text == "Generate", "the end of the run", timeout_s)
        self.frames()

    def frames(self) -> None:
        """Until what is known is also drawn."""
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def texts(self, arm: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", f".{arm} .tok")

    def indices(self, selector: str) -> list[int]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((n) => +n.dataset.index)", selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)
