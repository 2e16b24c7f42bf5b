r"""The organism's task: reach a target from a start in exactly two moves, trying in writing until it works.

A problem gives a start and a target between 00 and 22 and three moves such as `+3`, `-5` or `*4`; arithmetic is modulo
23. Exactly one of the nine sequences of two moves (a move may repeat) leads to the target; the answer is the value
between them. It cannot be read off the prompt. No solution is one move twice: those are so often the only ones of their
kind that they would be a good guess.

A chain of thought writes at most ATTEMPTS attempts, each a sentence:

    From 07 reach 17 with +3, *4, -5.
     try 17: 07*4=05, 05+3=08, no. take 17: 07+3=10, 10*4=17, yes.

    The final answer is \boxed{10}

What is decided where is known by construction: each of an attempt's moves is a *decision*; the first word of an attempt
is *style*, drawn at random and without consequence; everything else is *determined* by what stands before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

MODULUS: Final = 23  # prime, so that every multiplication can be undone
OPERATORS: Final = "+-*"
OPERANDS: Final = range(2, 7)
MOVES: Final = tuple(f"{operator}{operand}" for operator in OPERATORS for operand in OPERANDS)
OFFERED: Final = 3  # moves of a problem
STEPS: Final = 2  # moves of an attempt
ATTEMPTS: Final = 4
SEQUENCES: Final = np.array(list(product(range(OFFERED), repeat=STEPS)))  # [9, STEPS], indices of offered moves
HINT: Final = 0.6  # chance that a demonstration takes the right move where there is one, instead of any
_HELD_OUT: Final = 16  # one problem in so many is never trained on

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Problems:
    """A batch of problems as arrays."""

    start: Ints  # [n], 0 to 22
    target: Ints  # [n], 0 to 22
    moves: Ints  # [n, OFFERED], indices of MOVES
    solution: Ints  # [n, STEPS], indices of the problem's moves

    def __len__(self) -> int:
        return len(self.start)

    def take(self, which: NDArray[np.bool_] | Ints) -> Problems:
        """Return some of them."""
        return Problems(self.start[which], self.target[which], self.moves[which], self.solution[which])

    def text(self, i: int) -> str:
        """Return problem i as it is put to the model."""
        offered = ", ".join(MOVES[m] for m in self.moves[i])
        return f"From {self.start[i]:02d} reach {self.target[i]:02d} with {offered}."

    def way(self) -> Ints:
        """Return the values between start and target on the only way; [n, STEPS - 1]."""
        rows, value, found = np.arange(len(self)), self.start, []
        for step in range(STEPS - 1):
            value = applied(value, self.moves[rows, self.solution[:, step]])
            found.append(value)
        return np.stack(found, axis=1)

    def answer(self, i: int) -> str:
        """Return the reference answer: the values on the way, two digits each."""
        return "".join(f"{value:02d}" for value in self.take(np.array([i])).way()[0])


def seeded(*parts: object) -> np.random.Generator:
    """Return a generator whose seed is a hash of what it is for."""
    digest = hashlib.sha256("/".join(map(str, ("organism", *parts))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "big")))


def applied(value: Ints, move: Ints) -> Ints:
    """Return `value` after `move` (an index of MOVES), modulo 23; the arrays broadcast."""
    operator, operand = np.divmod(move, len(OPERANDS))
    operand = operand + OPERANDS.start
    moved = np.where(operator == 0, value + operand, np.where(operator == 1, value - operand, value * operand))
    return np.asarray(moved % MODULUS, dtype=np.int64)


def ends(value: Ints, moves: Ints) -> Ints:
    """Return where each of SEQUENCES leads from `value` [n] with `moves` [n, OFFERED]; [n, 9]."""
    at = np.repeat(value[:, None], len(SEQUENCES), axis=1)
    for step in range(STEPS):
        at = applied(at, moves[:, SEQUENCES[:, step]])
    return at


def problems(n: int, *key: object, held_out: bool) -> Problems:
    """Return n problems, no two alike, drawn by a hash of `key`, from one side of a fixed split.

    Args:
        held_out: from the sixteenth part of all problems that is never trained on; else from the rest.
    """
    rng = seeded("problems", held_out, *key)
    found: list[Problems] = []
    seen: set[int] = set()
    while len(seen) < n:
        batch = _draw(rng, (n - len(seen)) * (_HELD_OUT if held_out else 2) + 64)
        names = _names(batch)
        fresh = (_mixed(names) % _HELD_OUT == 0) == held_out
        for i in np.flatnonzero(fresh):
            fresh[i] = int(names[i]) not in seen and len(seen) < n
            if fresh[i]:
                seen.add(int(names[i]))
        found.append(batch.take(fresh))
    return Problems(
        *(np.concatenate([getattr(p, field) for p in found]) for field in ("start", "target", "moves", "solution"))
    )


def _draw(rng: np.random.Generator, n: int) -> Problems:
    """Return up to n problems with exactly one solution each, uniform over the sequences that allow it."""
    start = rng.integers(0, MODULUS, n)
    moves = np.argsort(rng.random((n, len(MOVES))), axis=1)[:, :OFFERED]
    reached = ends(start, moves)
    counts = (reached[:, :, None] == reached[:, None, :]).sum(axis=2)
    allowed = (counts == 1) & (SEQUENCES.min(axis=1) != SEQUENCES.max(axis=1))
    score = np.where(allowed, rng.random(reached.shape), -1.0)
    chosen = score.argmax(axis=1)
    rows = np.arange(n)
    return Problems(start, reached[rows, chosen], moves, SEQUENCES[chosen]).take(score[rows, chosen] >= 0)


def _names(batch: Problems) -> Ints:
    """Return a number for each problem that does not depend on the order in which its moves are listed."""
    name = batch.start * MODULUS + batch.target
    for move in np.sort(batch.moves, axis=1).T:
        name = name * len(MOVES) + move
    return name


def _mixed(names: Ints) -> NDArray[np.uint64]:
    """Return well-mixed bits of each number (the finalizer of splitmix64)."""
    x = names.astype(np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def demonstrated(batch: Problems, rng: np.random.Generator) -> Ints:
    """Return the moves a demonstration takes in every attempt; [n, ATTEMPTS, STEPS], indices of the problem's moves.

    Where the moves so far are the solution's, the right one is taken with chance HINT, else any of the three; off the
    solution any. Attempts forget one another. Those after the first that succeeds are not written.
    """
    n = len(batch)
    any_move = rng.integers(0, OFFERED, (n, ATTEMPTS, STEPS))
    hinted = rng.random((n, ATTEMPTS, STEPS)) < HINT
    solution = batch.solution[:, None, :]
    right = hinted | (any_move == solution)
    on_path = np.cumprod(right, axis=2).astype(bool)
    before = np.concatenate([np.ones((n, ATTEMPTS, 1), dtype=bool), on_path[:, :, :-1]], axis=2)
    return np.asarray(np.where(before & hinted, solution, any_move), dtype=np.int64)


def batches(size: int, seed: int, first: int = 0) -> Iterator[tuple[Problems, np.random.Generator]]:
    """Yield the training batches from number `first` on, each with the generator for its demonstrations.

    A batch depends on its number alone, so training resumes with the batch it would have seen.
    """
    number = first
    while True:
        yield problems(size, "train", seed, number, held_out=False), seeded("demonstrations", seed, number)
        number += 1
