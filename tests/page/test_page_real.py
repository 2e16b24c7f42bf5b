"""The page before the real server and model, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerdec.policies.registry import POLICIES
from tests.page.browser import Page, start_chrome
from tests.page.test_page import everyday_path


@pytest.mark.engine
def test_the_everyday_path_on_the_real_server(server_url: str, tmp_path: Path) -> None:
    driver = start_chrome(tmp_path / "chromium")
    try:
        page = Page(driver, server_url)
        everyday_path(page)
        page.set("max_tokens", 4)
        for policy in POLICIES:  # what the form makes of the schema, the engine takes
            page.set("policy", policy)
            page.generate(timeout_s=120)
            assert page.error == ""
            assert len(page.texts("steered")) > 0
        assert driver.save_screenshot(str(tmp_path / "page.png"))
    finally:
        driver.quit()
