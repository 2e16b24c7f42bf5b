"""What kind of token a token is, so that "the same place" can be told from "the same kind of token"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

CLASSES: Final = ("digit", "operator", "word start", "continuation")
OPERATORS: Final = frozenset("+-*/=<>^%×÷·−±≤≥≠≈√∑∫")
_LATEX: Final = ("\\times", "\\cdot", "\\div", "\\frac", "\\sqrt", "\\pm")
_WORD_MARKS: Final = " \n\t"


def token_classes(texts: Sequence[str]) -> list[str]:
    """One of CLASSES for each token's text, the first that fits.

    digit: has a digit. operator: has an arithmetic sign, or begins a LaTeX one. word start: begins with a space or a
    line break, or follows one, or is the first. continuation: the rest, punctuation glued to a word included.
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
