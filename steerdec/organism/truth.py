"""True forks by parsing: what each token of a response is, known from the task and not from any model.

Kinds:

    decision     a move of an attempt: any offered move could stand there, and which one matters
    style        the first word of an attempt: either of two could stand there, and neither matters
    determined   what the tokens before it leave no choice about: signs, results, verdicts, the answer, the end
    malformed    from the first token on that the task's grammar does not allow; nothing is said of the rest

A decision is *live* if, from the value written before it, the target can still be reached with the moves that are left
in the attempt; in a dead one every move leads to the same verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from steerdec.organism import task, vocabulary

DECISION: Final = "decision"
STYLE: Final = "style"
DETERMINED: Final = "determined"
MALFORMED: Final = "malformed"
KINDS: Final = (DECISION, STYLE, DETERMINED, MALFORMED)
_PROBLEM: Final = re.compile(r"From (\d\d) reach (\d\d) with (\S+), (\S+), (\S+)\.")


@dataclass(frozen=True)
class Label:
    """The truth about one token."""

    kind: str
    attempt: int  # counted from 0; that of the last attempt for what follows it
    step: int  # of the attempt, counted from 0; -1 outside its steps
    live: bool = False  # decisions only
    right: bool = False  # decisions only: the target can still be reached after it
    expected: str | None = None  # determined tokens: the only correct text

    def slipped(self, text: str) -> bool:
        """Return whether a determined token says something else than it must."""
        return self.expected is not None and text != self.expected


@dataclass(frozen=True)
class Puzzle:
    """A problem as it is read from its text."""

    start: int
    target: int
    moves: tuple[int, ...]  # indices of task.MOVES


def puzzle(text: str) -> Puzzle:
    """Read a problem's text. Raises ValueError if it is not one of the task's."""
    found = _PROBLEM.match(text)
    if found is None or any(move not in task.MOVES for move in found.groups()[2:]):
        raise ValueError(f"{text[:60]!r} is not a problem of the organism's task")
    start, target, *moves = found.groups()
    return Puzzle(int(start), int(target), tuple(task.MOVES.index(move) for move in moves))


def labels(problem: Puzzle, texts: Sequence[str]) -> list[Label]:
    """Return the label of each token of a response, special tokens included; as many as `texts`."""
    found: list[Label] = []
    for label in _read(problem, texts):
        found.append(label)
        if label.kind == MALFORMED:
            break
    last = found[-1] if found else Label(MALFORMED, 0, -1)
    rest = Label(MALFORMED, last.attempt, -1)
    return [*found, *[rest] * (len(texts) - len(found))][: len(texts)]


def _read(problem: Puzzle, texts: Sequence[str]) -> Iterator[Label]:
    """Yield labels until the response ends or leaves the grammar; a slip in a result is read as it stands."""
    tokens = iter(texts)
    attempt, way = 0, [0] * (task.STEPS - 1)
    for attempt in range(task.ATTEMPTS):
        if next(tokens, None) not in vocabulary.STYLES:
            yield Label(MALFORMED, attempt, -1)
            return
        yield Label(STYLE, attempt, -1)
        yield from _fixed(tokens, (f"{problem.target:02d}", vocabulary.COLON), attempt)
        value = problem.start
        for step in range(task.STEPS):
            restated = next(tokens, None)
            if restated not in vocabulary.VALUES:
                yield Label(MALFORMED, attempt, step)
                return
            yield Label(DETERMINED, attempt, step, expected=f"{value:02d}")
            value = int(restated)
            move = next(tokens, None)
            if move not in task.MOVES:
                yield Label(MALFORMED, attempt, step)
                return
            chosen = task.MOVES.index(move)
            after = _applied(value, chosen)
            left = task.STEPS - 1 - step
            live = reachable(problem, value, left + 1)
            yield Label(DECISION, attempt, step, live=live, right=reachable(problem, after, left))
            yield from _fixed(tokens, ("=",), attempt)
            result = next(tokens, None)
            if result not in vocabulary.VALUES:
                yield Label(MALFORMED, attempt, step)
                return
            yield Label(DETERMINED, attempt, step, expected=f"{after:02d}")
            value = int(result)
            if step < task.STEPS - 1:
                way[step] = value
            yield from _fixed(tokens, (vocabulary.NEXT,), attempt)
        verdict = next(tokens, None)
        if verdict not in (vocabulary.YES, vocabulary.NO):
            yield Label(MALFORMED, attempt, -1)
            return
        yield Label(DETERMINED, attempt, -1, expected=vocabulary.YES if value == problem.target else vocabulary.NO)
        if verdict == vocabulary.YES:
            break
    answer = (f"{value:02d}" for value in way)
    ending = (vocabulary.BLANK_LINE, vocabulary.CLOSING, *answer, vocabulary.CLOSED, vocabulary.END)
    yield from _fixed(tokens, ending, attempt)


def _fixed(tokens: Iterator[str], expected: Sequence[str], attempt: int) -> Iterator[Label]:
    """Yield a determined label for each token that has to stand here, whatever stands there."""
    for text, _ in zip(expected, tokens, strict=False):
        yield Label(DETERMINED, attempt, -1, expected=text)


def _applied(value: int, move: int) -> int:
    return int(task.applied(np.int64(value), np.int64(move)))  # type: ignore[arg-type]


@cache
def _reachable(value: int, moves: tuple[int, ...], left: int) -> frozenset[int]:
    if not left:
        return frozenset({value})
    return frozenset().union(*(_reachable(_applied(value, move), moves, left - 1) for move in moves))


def reachable(problem: Puzzle, value: int, left: int) -> bool:
    """Return whether exactly `left` more moves can lead from `value` to the target."""
    return problem.target in _reachable(value, problem.moves, left)
