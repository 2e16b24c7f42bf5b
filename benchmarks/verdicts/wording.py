"""Numbers in the reasons of verdicts."""

from __future__ import annotations

import math


def points(fraction: float) -> str:
    """Return a difference of fractions in points: -0.031 is "−3.1"."""
    return f"{100 * fraction:+.1f}".replace("-", "−")


def amount(value: float, *, score: bool) -> str:
    """Return a difference with its unit: points for scores, else tokens."""
    return f"{points(value)} points" if score else f"{value:+.1f} tokens".replace("-", "−")


def interval(low: float, high: float, *, score: bool) -> str:
    if score:
        return f"[{points(low)}, {points(high)}]"
    return f"[{low:+.1f}, {high:+.1f}]".replace("-", "−")


def probability(p: float) -> str:
    if math.isnan(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
