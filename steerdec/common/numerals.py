"""Read numbers as people and models write them: `1,234`, `$12.50`, `007`, `−5`, `1{,}000`, `3e5`.

Numbers stay strings of digits in a canonical form, so two numbers are equal exactly if their strings are. `float()`
would round, and `int()` does not accept "3.0".
"""

from __future__ import annotations

import re

_SEPARATOR = r"(?:,|\{,\}|,\\!|\\[,; ]|[ ~\u00a0\u2009\u202f])"  # between groups of three digits
NUMBER = (
    r"(?P<sign>[-+\u2212]?)[ ]*(?:\\?\$)?[ ]*"
    rf"(?P<whole>[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?:\.(?P<fraction>[0-9]+))?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,2})(?![0-9A-Za-z]))?"
)  # the digits are ASCII: \d would also match superscripts, and 7² is not 72
MAX_CHARS = 1000  # no answer is longer; this keeps the decoration pattern, quadratic in runs of spaces, cheap
_WHOLE_TEXT = re.compile(NUMBER + r"\.?")
_DECORATION = re.compile(r"^(?:\s|\\?\$|\*\*|\\\(|\\!|\{(?=[^{}]*\}))+|(?:\s|\\?\$|\*\*|\\\)|\\!|(?<=[0-9])\})+$")


def canonical_number(match: re.Match[str]) -> str:
    """Return the number that :data:`NUMBER` matched: a minus sign if negative, no surplus zeros, no exponent."""
    whole = re.sub(r"[^0-9]", "", match["whole"])
    fraction = match["fraction"] or ""
    point = len(whole) + int(match["exponent"] or 0)
    digits = (whole + fraction).rjust(len(whole + fraction) - min(point, 0), "0")
    point = max(point, 0)
    digits = digits.ljust(point, "0")
    whole, fraction = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    unsigned = f"{whole}.{fraction}" if fraction else whole
    return f"-{unsigned}" if match["sign"] in ("-", "\u2212") and unsigned != "0" else unsigned


def read_number(text: str) -> str | None:
    """Return the canonical form of a text that is one number, apart from `$`, `**`, and spaces; else None."""
    match = _match(text)
    return None if match is None else canonical_number(match)


def read_integer(text: str) -> str | None:
    """Do as :func:`read_number`, for integers written without digits after a decimal point and without an exponent."""
    match = _match(text)
    if match is None or match["fraction"] or match["exponent"] or not match["whole"]:
        return None
    return canonical_number(match)


def _match(text: str) -> re.Match[str] | None:
    return None if len(text) > MAX_CHARS else _WHOLE_TEXT.fullmatch(_DECORATION.sub("", text))
