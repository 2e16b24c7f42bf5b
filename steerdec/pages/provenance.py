"""How a result was made, as rows of names and values for the end of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from steerdec.pages.wording import MISSING

MOST_LISTED = 8


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested facts as dotted names and plain text, in their order.

    A list of more than `MOST_LISTED` entries is given by its length, None and an empty list as a dash.
    """
    return [row for name, value in facts.items() for row in _rows(name, value)]


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in _rows(f"{name}.{key}", inner)]
    if isinstance(value, list | tuple):
        listed = ", ".join(map(str, value)) or MISSING
        return [(name, listed if len(value) <= MOST_LISTED else f"{len(value)} entries")]
    if value is None:
        return [(name, MISSING)]
    return [(name, value if isinstance(value, str) else json.dumps(value))]
