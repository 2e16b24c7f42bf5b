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

WIDE, NARROW, NARROWEST = 1400, 390, 320

# What sticks out of the window to the right, apart from what scrolls by itself.
OUTSIDE = """
const edge = document.documentElement.clientWidth + 1;
return [...document.querySelectorAll('main *')]
  .filter((n) => !n.closest('pre, .scroll') && n.getClientRects().length)
  .filter((n) => n.getBoundingClientRect().right > edge).map((n) => n.outerHTML.slice(0, 80));
"""
# Texts whose contrast with their background is below WCAG's AA.
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = (color, under) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const c of [under, color]) { if (c) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); } }
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const solid = (c) => rgba(c)[3] === 255;
const background = (n) => { while (n && !solid(getComputedStyle(n).backgroundColor)) n = n.parentElement;
  return n ? getComputedStyle(n).backgroundColor : 'white'; };
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const luminance = (channels) => channels.slice(0, 3).map((v) => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
return [...document.querySelectorAll('body *')].filter((n) => n.getClientRects().length && !n.closest(':disabled') &&
    [...n.childNodes].some((c) => c.nodeType === 3 && c.data.trim())).map((n) => {
  const back = background(n);
  const [a, b] = [luminance(rgba(getComputedStyle(n).color, back)), luminance(rgba(back))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), n.outerHTML.slice(0, 100)];
}).filter(([ratio]) => ratio < 4.5);
"""


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


def resize(driver: Chrome, width: int, scheme: str = "light") -> None:
    """A window `width` px wide, a phone's below 500, in a light or dark color scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # else a click meets a moving page
    given = [{"name": name, "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": given})


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
        resize(self.driver, width, scheme)

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
