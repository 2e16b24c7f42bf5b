"""Classify tokens, so that "the same place" can be told apart from "the same kind of token"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

CLASSES: Final = ("digit", "operator", "word start", "continuation")
OPERATORS: Final = frozenset("+-*/=<>^%×÷·−±≤≥≠≈√∑∫")
_LATEX: Final = ("\\times", "\\cdot", "\\div", "\\frac", "\\sqrt", "\\pm")
_WORD_MARKS: Final = " \n\t"


def token_classes(texts: Sequence[str]) -> list[str]:
    """Return one of CLASSES for each token's text, the first that fits.

    digit: contains a digit. operator: contains an arithmetic sign, or begins a LaTeX operator. word start: begins with
    a space or a line break, follows one, or is the first token. continuation: all others, including punctuation
    attached to a word.
    """
    found = []
    before = " "
    for text in texts:
        bare = text.strip()
        if any(c.isdigit() for c in bare):
            found.append("digit")
        elif any(c in OPERATORS for c in bare) or (len(bare) > 1 and any(sign.startswith(bare) for sign in _LATEX)):
            found.append("operator")
        elif text.startswith(tuple(_WORD_MARKS)) or before.endswith(tuple(_WORD_MARKS)):
            found.append("word start")
        else:
            found.append("continuation")
        before = text or before
    return found
