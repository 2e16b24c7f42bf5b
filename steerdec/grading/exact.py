"""Compare two answers exactly with a computer algebra system. May take forever: `pool` runs it where it can end it.

math-verify parses and compares. It calls numbers equal that agree to six digits, and drops what it takes for a unit.
Here units are off (`measures` has read them), and of two numbers it calls equal the exact difference must be zero.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any, Final

MAX_CANONICAL_CHARS: Final = 200
_PLUS_MINUS: Final = re.compile(r"\\pm(?![A-Za-z])|±")
_MINUS_PLUS: Final = re.compile(r"\\mp(?![A-Za-z])|∓")


def compare(answer: str, gold: str) -> tuple[bool, str]:
    """Return (whether the two are equal, `answer` in the form in which equal answers are counted)."""
    from math_verify import LatexExtractionConfig, parse, verify  # 2 s: not for runs that never need it
    from math_verify.parser import NormalizationConfig

    # It warns that its own time-outs are off. They use SIGALRM, which only a main thread may use, and which does not
    # interrupt a long integer power.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    config = [LatexExtractionConfig(normalization_config=normal)]
    try:
        parsed_gold, parsed = (
            parse(f"\\boxed{{{both_signs(latex)}}}", extraction_config=config, parsing_timeout=None)
            for latex in (gold, answer)
        )
        equal = bool(verify(parsed_gold, parsed, timeout_seconds=None))
        if equal and "%" not in answer + gold:
            equal = not _differ(parsed, parsed_gold)
        return equal, _canonical(parsed, answer)
    except Exception:  # what cannot be read is not equal
        return False, answer


def both_signs(latex: str) -> str:
    r"""Return "1 + x, 1 - x" for `1 \pm x`, which math-verify does not read as two answers."""
    if not _PLUS_MINUS.search(latex):
        return latex
    return ", ".join(_MINUS_PLUS.sub(lower, _PLUS_MINUS.sub(upper, latex)) for upper, lower in ("+-", "-+"))


@cache
def prepare() -> None:
    """Parse and compare once, because the parser builds its tables at the first expression."""
    compare(r"\frac{1}{2}", "0.5")


def _number(parsed: list[Any]) -> Any:
    """Return the only number that was parsed, exact; None where it is something else."""
    import sympy

    expression = parsed[0] if parsed else None
    if not isinstance(expression, sympy.Expr) or not expression.is_number:
        return None
    return expression.xreplace({one: sympy.Rational(str(one)) for one in expression.atoms(sympy.Float)})


def _differ(answer: list[Any], gold: list[Any]) -> bool:
    a, b = _number(answer), _number(gold)
    return a is not None and b is not None and (a - b).equals(0) is False


def _canonical(parsed: list[Any], text: str) -> str:
    """Return one string for all ways to write a number or an expression; `text` where there is none."""
    import sympy

    expression = parsed[0] if parsed else None
    if not isinstance(expression, sympy.Basic) or re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text):
        return text  # a word is not the product of its letters
    number = _number(parsed)
    shown = str(expression if number is None else _evaluated(number))
    if isinstance(number, sympy.Rational) and (decimal := _terminating(number)) is not None:
        shown = decimal
    return shown if len(shown) <= MAX_CANONICAL_CHARS else text


def _evaluated(number: Any) -> Any:
    """Return a number that was parsed as written, `sqrt(117)`, in its usual form, unless that may take forever."""
    import sympy

    exponents = [power.exp for power in number.atoms(sympy.Pow)]
    small = all(exponent.is_Rational and abs(exponent) <= 1000 for exponent in exponents)
    return number.doit() if small and not number.has(sympy.factorial) else number


def _terminating(number: Any) -> str | None:
    """Return a rational number as a decimal without rounding, None where it has none of at most 30 places."""
    for places in range(30):
        scaled = number * 10**places
        if scaled.is_integer:
            digits = str(abs(int(scaled))).rjust(places + 1, "0")
            whole = digits[: len(digits) - places] + ("." + digits[-places:] if places else "")
            return ("-" if number < 0 else "") + whole
    return None
