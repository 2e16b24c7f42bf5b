"""The verdicts and the differences of a run as LaTeX tables for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from steerdec.pages import wording

from .plots import Forest
from .view import ClaimRow

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    wording.MINUS: "$-$",
    wording.MISSING: "--",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}
_ESCAPED = re.compile("|".join(map(re.escape, _ESCAPES)))


def tables(claims: Iterable[ClaimRow], forest: Forest, about: str) -> str:
    """Return two `tabular` environments, the claims and every difference. They need the package booktabs.

    Args:
        about: one line on what the run was, written as a comment.
    """
    verdicts = [(row.claim.statement, row.claim.verdict, row.label, row.difference, row.interval) for row in claims]
    differences = [
        (
            row.label,
            mark.comparison.scope,
            wording.points(mark.comparison.diff),
            wording.points_interval(mark.comparison.ci95),
            wording.p_value(mark.comparison.p),
            wording.p_value(mark.comparison.p_holm),
        )
        for row in forest.rows
        for mark in row.marks
        if mark is not None
    ]
    one_line = " ".join(about.split())
    return "\n".join(
        [
            f"% {one_line}",
            r"% \usepackage{booktabs}; differences in percentage points with 95% intervals",
            _tabular("p{0.42\\linewidth}llrr", ("claim", "verdict", "difference", "points", "95% interval"), verdicts),
            "",
            _tabular("llrrrr", ("difference", "over", "points", "95% interval", "p", "p, Holm"), differences),
            "",
        ]
    )


def _tabular(columns: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(head), r"\midrule"]
    lines += [_row(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


def escape(text: str) -> str:
    """Return plain text escaped for LaTeX, with LaTeX's typographic quotes."""
    text = " ".join(text.split())
    return _ESCAPED.sub(lambda sign: _ESCAPES[sign[0]], text).replace("“", "``").replace("”", "''")
