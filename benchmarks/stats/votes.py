"""The majority vote of some of the answers to one problem, exactly. Pure; imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import comb


def majority_of_subset(right: Iterable[int], wrong: Iterable[int], silent: int, size: int) -> float:
    """Return the chance that the most frequent answer of `size` samples, drawn without replacement, is right.

    Answers that tie share the win equally, as they do where the one given first wins and the order is random. With all
    samples drawn, this is the vote of exactly these.

    Args:
        right: how many samples gave each distinct right answer.
        wrong: how many gave each distinct wrong one.
        silent: how many gave none; they have no vote.
        size: 0 to the number of samples.
    """
    return _chance(tuple(sorted(right)), tuple(sorted(wrong)), silent, size)


@lru_cache(maxsize=100_000)
def _chance(right: tuple[int, ...], wrong: tuple[int, ...], silent: int, size: int) -> float:
    total = sum(right) + sum(wrong) + silent
    if not 0 <= size <= total:
        raise ValueError(f"size is {size}; 0 to {total} is allowed")
    won = 0.0
    for number, own in enumerate(right):
        others = (*right[:number], *right[number + 1 :], *wrong)
        for votes in range(1, min(own, size) + 1):
            won += comb(own, votes) * _rest(others, silent, size - votes, votes)
    return won / comb(total, size)


def _rest(others: tuple[int, ...], silent: int, size: int, most: int) -> float:
    """Return the number of ways to draw the rest with no answer above `most`, each over 1 + the answers at `most`."""
    ways = {(0, 0): 1}  # by (drawn, answers with `most` votes)
    for own in others:
        after: dict[tuple[int, int], int] = {}
        for (drawn, ties), count in ways.items():
            for votes in range(min(own, most, size - drawn) + 1):
                key = drawn + votes, ties + (votes == most)
                after[key] = after.get(key, 0) + count * comb(own, votes)
        ways = after
    return sum(count * comb(silent, size - drawn) / (1 + ties) for (drawn, ties), count in ways.items())
