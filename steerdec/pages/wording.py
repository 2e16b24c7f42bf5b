"""Format numbers in one way for the terminal, the HTML, the Markdown and LaTeX.

Accuracies and differences arrive as fractions (0 to 1) and are printed as percent or percentage points. `None` is a
number that could not be computed (JSON has no NaN): it is printed as a dash, never as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"
MINUS = "−"

Ends = Sequence[float | None]  # of an interval, lowest first


def number(value: float | None, digits: int = 2) -> str:
    """Return `1,234.50` for `1234.5`, with a true minus sign, and never `-0.0`."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{abs(value):,.{digits}f}"
    return MINUS + text if value < 0 and float(text.replace(",", "")) != 0 else text


def counted(count: int, word: str) -> str:
    """Return `1 sample` or `1,440 samples`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as percent: `0.4321` -> `43.2%`."""
    return MISSING if value is None or not math.isfinite(value) else number(100 * value, digits) + "%"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign, except for zero."""
    text = number(value, digits)
    return text if text in (MISSING, number(0.0, digits)) or text.startswith(MINUS) else "+" + text


def points(value: float | None, digits: int = 1) -> str:
    """Return a difference of fractions in percentage points, signed: `-0.031` -> `−3.1`."""
    return MISSING if value is None else signed(100 * value, digits)


def points_interval(ci95: Ends | None, digits: int = 1) -> str:
    """Return `[−5.0, +1.0]` for `[-0.05, 0.01]`."""
    return interval(ci95, 100, digits, signs=True)


def percent_interval(ci95: Ends | None, digits: int = 1) -> str:
    """Return `[40.0, 50.0]` for `[0.4, 0.5]`; the percent sign belongs in the head of the column."""
    return interval(ci95, 100, digits)


def interval(ci95: Ends | None, times: float = 1, digits: int = 2, *, signs: bool = False) -> str:
    """Return `[0.40, 0.50]` for `[0.4, 0.5]`; a dash for an end that is not known."""
    if ci95 is None or None in ci95:
        return MISSING
    ends = (times * end for end in ci95 if end is not None)
    return f"[{', '.join((signed if signs else number)(end, digits) for end in ends)}]"


def p_value(p: float | None) -> str:
    """Return p with three decimals; below that only the bound, because more digits carry no information."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def sentence(text: str) -> str:
    """Return text with a capital and a full stop; a first word such as `F-down` or `avg@k` stays unchanged."""
    text = text.strip()
    if not text:
        return ""
    if text[1:2].islower() and "@" not in text.split()[0]:
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
