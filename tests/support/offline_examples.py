"""The examples under "Offline" in the documentation."""

from __future__ import annotations

from pathlib import Path

API = Path(__file__).parents[2] / "docs" / "api.md"


def examples(page: Path) -> list[str]:
    """The Python blocks of the section, in their order."""
    section = page.read_text("utf-8").partition("\n### Offline\n")[2].partition("\n### ")[0]
    return [block.partition("\n```")[0] for block in section.split("```python\n")[1:]]
