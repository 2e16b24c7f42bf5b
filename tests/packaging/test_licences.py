"""Every package of requirements/ has a licence that is allowed, and the page that lists them is up to date."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from tests.support.built import ROOT

LICENCES: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "build_licences.py"))
PACKAGES = [package for _, package in LICENCES["requirements"]()]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_licence_is_allowed(package: str) -> None:
    told = LICENCES["licence"](package)
    assert package in LICENCES["SPECIAL"] or LICENCES["refused"](told) == [], told


def test_what_is_allowed_by_name_is_still_needed() -> None:
    for package in (*LICENCES["SPECIAL"], *LICENCES["READ"], *LICENCES["ELSEWHERE"]):
        assert package in PACKAGES


def test_the_page_says_so() -> None:
    assert LICENCES["page"]() == (ROOT / "docs" / "licences.md").read_text("utf-8"), "run docs/build_licences.py"


@pytest.mark.parametrize(
    ("expression", "refused"),
    [
        ("MIT", []),
        ("GPL-3.0-only", ["GPL-3.0-only"]),
        ("GPL-3.0-only OR MIT", []),
        ("MIT AND GPL-3.0-only", ["GPL-3.0-only"]),
        ("MIT AND (Apache-2.0 WITH LLVM-exception)", []),
        ("GPL-2.0-only WITH LLVM-exception", ["GPL-2.0-only WITH LLVM-exception"]),
        ("none named", ["none named"]),
    ],
)
def test_expressions_are_read_as_spdx_means_them(expression: str, refused: list[str]) -> None:
    assert LICENCES["refused"](expression) == refused
