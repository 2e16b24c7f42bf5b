"""The documentation site: every page can be reached, and every room has a page of the API reference.

`make docs` builds it with warnings as errors; these are the parts that take no build.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import griffe
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
SITE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "build_site.py"))


def pages(entries: list[Any]) -> list[str]:
    """The pages of a navigation, in order."""
    found: list[str] = []
    for entry in entries:
        (value,) = entry.values()
        found += pages(value) if isinstance(value, list) else [value]
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    written = {path.name for path in (ROOT / "docs").glob("*.md")} | set(SITE["FROM_THE_TOP"]) | set(SITE["NOTEBOOKS"])
    written |= {"reference/"}
    assert sorted(pages(CONFIG["nav"])) == sorted(written)


def test_the_readme_links_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    linked = set(re.findall(r"\]\((?:docs/)?([\w-]+\.md)", readme))
    assert linked >= {path.name for path in (ROOT / "docs").glob("*.md")} | {"CONTRIBUTING.md", "CHANGELOG.md"}


def test_every_module_has_a_place_in_the_reference() -> None:
    text = "\n".join(SITE["_reference"](room) for _, room in SITE["rooms"]())
    shown = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for path in [path for top in ("steerdec", "server", "benchmarks") for path in (ROOT / top).rglob("*.py")]:
        if not path.name.startswith("__"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert f"steerdec.{name.removeprefix('steerdec.')}" in shown


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_diagrams_are_drawn_without_a_script(page: Path) -> None:
    for diagram in re.findall(r"^```mermaid\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        drawn = SITE["_drawn"](diagram)
        assert drawn.startswith('<figure class="diagram"><svg')
        assert "<script" not in drawn


def test_docstrings_name_parameters_that_exist(caplog: pytest.LogCaptureFixture) -> None:
    """What the strict build refuses in the API reference."""

    def parse(thing: griffe.Object) -> None:
        if thing.docstring:
            assert thing.docstring.parsed is not None
        for member in thing.members.values():
            if isinstance(member, griffe.Object):  # not an import of something that is elsewhere
                parse(member)

    with caplog.at_level("WARNING", logger="griffe"):
        package = griffe.load("steerdec", search_paths=[ROOT], try_relative_path=False, docstring_parser="google")
        assert isinstance(package, griffe.Object)
        parse(package)
    assert not caplog.messages
