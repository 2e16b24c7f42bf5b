"""The options in the name of a problem set: `NAME?key=value&key=value`, as in a URL."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl

from steerdec.problems.problem import ProblemError


def split_query(name: str, allowed: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return what stands before the last `?`, and the options after it.

    Raises:
        ProblemError: the options have another form, an option is none of those allowed, has no value, or comes twice.
    """
    base, mark, query = name.rpartition("?")
    if not mark:
        return name, {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ProblemError(f"--problems: {name}: {query!r} is not of the form key=value&key=value") from None
    options: dict[str, str] = {}
    for key, value in pairs:
        if key not in allowed:
            raise ProblemError(f"--problems: {name}: {key!r} is not an option; allowed are {', '.join(allowed)}")
        if key in options:
            raise ProblemError(f"--problems: {name}: {key} is given twice")
        if not value:
            raise ProblemError(f"--problems: {name}: {key} has no value")
        options[key] = value
    return base, options
