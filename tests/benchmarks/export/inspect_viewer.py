"""Look at Inspect logs in `inspect view`, in a real browser."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.page.browser import start_chrome

START_S = 300  # Inspect takes seconds to start, minutes on a busy machine


@dataclass(frozen=True)
class Shown:
    """What the viewer shows of a log: avg@k at the top, and how many rows have each grade."""

    score: float
    grades: dict[str, int]


def check_viewer(inspect: Path, logs: Path, screenshots: Path) -> dict[str, Shown]:
    """Return what the viewer shows of every log, by the name of its file; keep screenshots."""
    screenshots.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(inspect), "view", "start", "--log-dir", str(logs.resolve()), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        with tempfile.TemporaryDirectory() as profile:
            driver = start_chrome(Path(profile))
            try:
                return _all(driver, f"http://127.0.0.1:{port}", logs, screenshots)
            finally:
                driver.quit()
    finally:
        server.terminate()
        server.wait(60)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(1)
    raise RuntimeError(f"inspect view did not start (status {server.poll()})")


def _all(driver: Chrome, url: str, logs: Path, screenshots: Path) -> dict[str, Shown]:
    names = sorted(path.name for path in logs.glob("*.eval"))
    driver.set_window_size(1500, 1000)
    driver.get(url)
    _text_with(driver, rf"(?s)^(?!.*Syncing).*\b{len(names)} items")  # scores come after the names
    driver.save_screenshot(str(screenshots / "logs.png"))
    driver.set_window_size(1500, 4000)  # rows that are out of view are not in the page
    return {name: _one(driver, url, name, screenshots) for name in names}


def _one(driver: Chrome, url: str, name: str, screenshots: Path) -> Shown:
    driver.get("about:blank")
    driver.get(f"{url}/#/tasks/{name}")
    text = _text_with(driver, r"\d+ Samples")
    score = re.search(r"avg_at_k\s*(?:\(\d+/\d+\))?\s*(?:mean)?\s*([\d.]+)", text, re.IGNORECASE)
    assert score is not None, f"no score of {name} in:\n{text[:1000]}"
    rows = driver.find_elements(By.XPATH, "//*[@role='row'][.//*[@role='gridcell' or @role='cell']]")
    grades = Counter(row.text.split("\n")[-1] for row in rows)
    driver.save_screenshot(str(screenshots / f"{name}.png"))
    return Shown(float(score[1]), {grade: grades[grade] for grade in ("C", "I")})


def _text_with(driver: Chrome, pattern: str) -> str:
    """Return the text of the page when it matches."""

    def text(driver: Chrome) -> str | None:
        shown = str(driver.execute_script("return document.body.innerText"))
        return shown if re.search(pattern, shown) else None

    found = WebDriverWait(driver, 180).until(text)
    assert found is not None
    return found
