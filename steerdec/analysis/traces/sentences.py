"""Split a chain into sentences without splitting tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHORTEST_CHARACTERS: Final = 12  # "1. " of a list and "So." are joined with their neighbor
# A period ends a sentence if a space or the end follows, so that 3.5 and x.y stay whole.
_END: Final = re.compile(r"[.?!]+[\"'”’)\]]*(?=\s|$)|\n[ \t]*\n")

Floats = NDArray[np.float64]


def sentence_spans(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return (first token, token after the last) of each sentence; together they cover all tokens, each once.

    A sentence ends at `.`, `?`, `!`, or a blank line. A piece shorter than SHORTEST_CHARACTERS, without surrounding
    space, is joined with the next one, and the last piece with the one before; none is dropped. A token that two
    sentences share belongs to the one in which it begins (not counting leading space).

    Args:
        texts: the text of each token; joined, they are the whole text.
    """
    text = "".join(texts)
    ends = [match.end() for match in _END.finditer(text)]
    ends = sorted({*ends, len(text)})
    pieces: list[int] = []  # ends of sentences that are long enough
    begin = 0
    for end in ends:
        if len(text[begin:end].strip()) >= SHORTEST_CHARACTERS:
            pieces.append(end)
            begin = end
    if not pieces:
        pieces = [len(text)]
    pieces[-1] = len(text)
    owner = []
    at = 0
    for token in texts:
        blank = len(token) - len(token.lstrip())
        starts = at + blank if blank < len(token) else at
        owner.append(int(np.searchsorted(pieces, starts, side="right")))
        at += len(token)
    return _spans(owner)


def _spans(owner: Sequence[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for i, sentence in enumerate(owner):
        if i and sentence == owner[i - 1]:
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((i, i + 1))
    return spans


def lifted(scores: ArrayLike, spans: Sequence[tuple[int, int]]) -> tuple[Floats, Floats]:
    """Return the largest and the mean score of each sentence's tokens, [n_sentences] each. Never do the reverse."""
    values = np.asarray(scores, dtype=np.float64)
    highest = np.array([np.max(values[a:b]) for a, b in spans], dtype=np.float64)
    return highest, np.array([np.mean(values[a:b]) for a, b in spans], dtype=np.float64)


def sentence_starts(n_tokens: int, spans: Sequence[tuple[int, int]]) -> Floats:
    """Return 1 at the first token of each sentence, else 0; [n_tokens]."""
    starts = np.zeros(n_tokens)
    starts[[a for a, _ in spans]] = 1.0
    return starts
