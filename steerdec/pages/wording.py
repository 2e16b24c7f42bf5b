"""Numbers and verdicts in words, once, for the terminal, the HTML and the Markdown.

Accuracies and differences arrive as fractions (0 to 1) and are printed as percent or percentage points.
`None` is a number that could not be computed (the JSON has no NaN): it is printed as a dash, never as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
MINUS = "−"

_VERDICTS = {"holds": "HOLDS", "fails": "FAILS", "undecided": "is UNDECIDED"}

_INSTRUMENT = {
    "valid": "The instrument is VALID: switched on at the base temperatures, steering answers as the baseline does.",
    "invalid": (
        "The instrument is INVALID: switched on at the base temperatures, steering already changes the answers, "
        "so the verdicts below measure the instrument and not the claims."
    ),
    "unchecked": (
        "The instrument was NOT CHECKED: the run holds no pair of arms that should agree, "
        "so an error of the steering itself cannot be told from an effect."
    ),
}


MUCH_CUT = 0.1


def cut_sentence(summary: Mapping[str, Any]) -> str | None:
    """What to do where the token limit decides many of the scores; None where it does not."""
    rates = {name: arm["truncation_rate"] or 0.0 for name, arm in summary["arms"].items()}
    worst = max(rates, key=lambda name: rates[name], default=None)
    if worst is None or rates[worst] <= MUCH_CUT:
        return None
    return (
        f"The token limit cut {percent(rates[worst])} of the answers of {worst}, which count as wrong; with a larger "
        "--max-tokens more of them would end."
    )


def number(value: float | None, digits: int = 2) -> str:
    """`1234.5` -> `1,234.50`; a true minus sign; never `-0.0`."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{abs(value):,.{digits}f}"
    return MINUS + text if value < 0 and float(text.replace(",", "")) != 0 else text


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent: `0.4321` -> `43.2%`."""
    return MISSING if value is None or not math.isfinite(value) else number(100 * value, digits) + "%"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign always shown, except on zero."""
    text = number(value, digits)
    return text if text in (MISSING, number(0.0, digits)) or text.startswith(MINUS) else "+" + text


def points(value: float | None, digits: int = 1) -> str:
    """A difference of fractions in percentage points, signed: `-0.031` -> `−3.1`."""
    return MISSING if value is None else signed(100 * value, digits)


def points_interval(ci95: Sequence[float | None] | None, digits: int = 1) -> str:
    """`[-0.05, 0.01]` -> `[−5.0, +1.0]`."""
    if ci95 is None or None in ci95:
        return MISSING
    return f"[{points(ci95[0], digits)}, {points(ci95[1], digits)}]"


def percent_interval(ci95: Sequence[float | None] | None, digits: int = 1) -> str:
    """`[0.4, 0.5]` -> `[40.0, 50.0]`, the percent sign left to the column's head."""
    if ci95 is None or ci95[0] is None or ci95[1] is None:
        return MISSING
    return f"[{number(100 * ci95[0], digits)}, {number(100 * ci95[1], digits)}]"


def p_value(p: float | None) -> str:
    """Three decimals; below that only the bound, which is all a reader can use."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def instrument_sentence(summary: Mapping[str, Any]) -> str:
    """What the A/A arm says about every other number of the run."""
    sentence = _INSTRUMENT.get(str(summary.get("instrument")), _INSTRUMENT["unchecked"])
    reason = str(summary.get("instrument_reason") or "").strip()
    return f"{sentence} {_as_sentence(reason)}" if reason else sentence


def claim_parts(claim: Mapping[str, Any], subject: str = "this model and set") -> tuple[str, str]:
    """The statement in quotation marks, and what the run says of it."""
    statement = _as_sentence(str(claim["statement"]).strip())
    verdict = _VERDICTS.get(str(claim["verdict"]), f"has the verdict {claim['verdict']!r}")
    reason = str(claim.get("reason") or "").strip().rstrip(".")
    told = f"On {subject} this claim {verdict}" + (f": {reason}." if reason else ".")
    narrower = claim.get("verdict_these_problems", claim["verdict"])
    if narrower != claim["verdict"]:
        told += f" Asked of these problems alone, it {_VERDICTS.get(str(narrower), narrower)}."
    return f"“{statement}”", told


def claim_sentence(claim: Mapping[str, Any], subject: str = "this model and set") -> str:
    """`“Lowering the forks lowers the score.” On this model and set this claim FAILS: <reason>.`"""
    return " ".join(claim_parts(claim, subject))


def _as_sentence(text: str) -> str:
    text = text[0].upper() + text[1:] if text[1:2].islower() else text
    return text if text.endswith((".", "!", "?")) else text + "."
