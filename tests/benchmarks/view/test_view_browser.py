"""`steerdec bench view` in a real browser: light and dark, wide and phone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import uvicorn
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from steerdec.benchmarks.view.app import app
from tests.page.browser import CONTRAST, NARROW, OUTSIDE, WIDE, resize
from tests.support.make_run import make_run

PAGES = ("", "problems", "problem?problem=embedded-001", "sample?problem=embedded-001&sample=0")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = make_run(tmp_path_factory.mktemp("view") / "run", n_problems=6, k=2)
    server = uvicorn.Server(uvicorn.Config(app(folder, ["127.0.0.1"]), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_pages_fit_the_window_and_are_readable_in_both_schemes(chrome: Chrome, url: str, width: int) -> None:
    chrome.get_log("browser")
    for path in PAGES:
        resize(chrome, width)
        chrome.get(url + path)
        assert chrome.execute_script(OUTSIDE) == [], path
        assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth"), path
        for scheme in ("light", "dark"):
            resize(chrome, width, scheme)
            assert chrome.execute_script(CONTRAST) == [], (path, scheme)
    assert [entry["message"] for entry in chrome.get_log("browser")] == []


def test_a_person_comes_from_the_run_to_the_forks_of_a_sample(chrome: Chrome, url: str) -> None:
    def click(text: str) -> None:
        chrome.find_element(By.PARTIAL_LINK_TEXT, text).click()

    def shows(selector: str, count: int) -> None:  # a page comes some time after the click
        WebDriverWait(chrome, 30).until(lambda _: len(chrome.find_elements(By.CSS_SELECTOR, selector)) == count)

    resize(chrome, WIDE)
    chrome.get(url)
    click("forks marked")
    shows("tbody tr", 3)
    chrome.find_element(By.NAME, "q").send_keys("001\n")
    shows("tbody tr", 1)
    click("embedded-001")
    shows("thead th", 1 + 6)
    click("0")
    shows(".response", 6)
    assert chrome.find_elements(By.CSS_SELECTOR, ".response .t.f")
    chrome.find_element(By.CSS_SELECTOR, "input[value=B]").click()
    chrome.find_element(By.CSS_SELECTOR, "form button").click()
    shows(".response", 5)
    click("Two arms side by side")
    shows(".two .panel", 2)
