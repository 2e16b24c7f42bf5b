"""Say in plain words what pydantic found wrong, for files that people write by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "an object of fields",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "an object of fields",
    "string_type": "a text",
    "tuple_type": "a list",
}
_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def said_plainly(
    error: ErrorDetails, *, known: Iterable[str] = (), pattern: str = "a text of the expected form"
) -> str:
    """Return what is wrong with a value, to follow its place in a message, for example "must be less than 1".

    Args:
        error: one error of pydantic's.
        known: the allowed fields, for an unknown one.
        pattern: how texts with a fixed form may look.
    """
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return f'field "{error["loc"][-1]}" is not known; {_allowed(str(error["loc"][-1]), list(known))}'
    if kind == "missing":
        return "is missing"
    if kind in _KINDS:
        return f"{shown(given)} is not {_KINDS[kind]}"
    if kind in ("float_parsing", "int_parsing", "int_from_float"):
        comma = isinstance(given, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", given)
        hint = f"; write a decimal point, as in {given.strip().replace(',', '.')}" if comma else ""
        return f"{shown(given)} is not a {'' if kind == 'float_parsing' else 'whole '}number{hint}"
    if kind in _BOUNDS:
        bound = context[_BOUNDS[kind]]
        words = {"gt": "greater than {}", "ge": "{} or more", "lt": "less than {}", "le": "{} or less"}[_BOUNDS[kind]]
        return f"{shown(given)} must be {words.format(f'{bound:g}')}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{shown(given)} is not allowed; {_allowed(str(given), allowed, all_of_them=True)}"
    if kind == "too_short":
        return f"there must be at least {context['min_length']}"
    if kind == "too_long":
        return f"there must be at most {context['max_length']}"
    if kind == "string_pattern_mismatch":
        return f"{shown(given)} is not {pattern}"
    if kind == "string_too_short":
        return f"{shown(given)} is not {pattern}"
    if kind == "string_too_long":
        return f"{shown(given)} is not {pattern}"
    return f"{shown(given)}: {error['msg'].removeprefix('Value error, ')}"


def _allowed(given: str, known: list[str], *, all_of_them: bool = False) -> str:
    nearest = get_close_matches(given, known, n=1)
    listed = f"allowed are {', '.join(known)}"
    if nearest and all_of_them:
        return f"did you mean {nearest[0]}? {listed}"
    return f"did you mean {nearest[0]}?" if nearest else listed


def shown(value: Any) -> str:
    """Return a value as the file has it, as one short line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 60 else text[:57] + "..."
