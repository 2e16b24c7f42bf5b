"""Successive halving over two families, steered settings and plain temperatures, and what it may cost. Pure.

In each rung every setting that is left has the same samples of the same problems, with the same seeds; the best third
of each family goes on, to three times as many samples. (Jamieson and Talwalkar 2016, "Non-stochastic best arm
identification and hyperparameter optimization".)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

KEEP_ONE_IN: Final = 3
SEARCH_SHARE: Final = 0.5  # of a token budget; the rest is for the test
FEWEST_TEST_SAMPLES: Final = 4  # per problem and arm, below which a test says little
TEST_ARMS: Final = 5  # baseline, A/A, the two finalists, and the baseline again where the engine is not deterministic


@dataclass(frozen=True)
class Rung:
    """One round. `samples`: per problem and arm in all, those of earlier rounds included."""

    number: int  # from 1
    samples: int
    steered: tuple[str, ...]
    plain: tuple[str, ...]

    @property
    def sampled(self) -> tuple[str, ...]:
        """Return the arms that this rung samples: a family with one arm left has nothing to decide."""
        return tuple(name for family in (self.steered, self.plain) if len(family) > 1 for name in family)

    @property
    def is_last(self) -> bool:
        """Return whether one of each family is left after it."""
        return max(len(self.steered), len(self.plain)) <= KEEP_ONE_IN


def first_rung(steered: Sequence[str], plain: Sequence[str], samples: int) -> Rung:
    """Return the rung with every arm."""
    return Rung(1, samples, tuple(steered), tuple(plain))


def rung_after(rung: Rung, scores: Mapping[str, float]) -> Rung:
    """Return the next rung, with the best third of each family by `scores`, and at least one of each.

    Of equal scores the earlier arm is the better one.
    """
    return Rung(
        rung.number + 1, rung.samples * KEEP_ONE_IN, _best_third(rung.steered, scores), _best_third(rung.plain, scores)
    )


def best(family: Sequence[str], scores: Mapping[str, float]) -> str:
    """Return the arm with the highest score, the first of equal ones; the only arm if there is one."""
    return family[0] if len(family) == 1 else max(family, key=lambda name: scores[name])


def _best_third(family: tuple[str, ...], scores: Mapping[str, float]) -> tuple[str, ...]:
    if len(family) == 1:
        return family
    kept = sorted(family, key=lambda name: -scores[name])[: math.ceil(len(family) / KEEP_ONE_IN)]
    return tuple(name for name in family if name in kept)


@dataclass(frozen=True)
class Extent:
    """How large a search is. `samples`: per problem, over all arms and rungs; `most`: of one arm."""

    samples: int
    most: int


def extent(steered: int, plain: int, samples: int) -> Extent:
    """Return the size of a search that begins with so many arms and so many samples of each problem."""
    total, rung = 0, first_rung([f"s{i}" for i in range(steered)], [f"p{i}" for i in range(plain)], samples)
    before = 0
    while True:
        total += len(rung.sampled) * (rung.samples - before)
        if rung.is_last:
            return Extent(total, rung.samples)
        before, rung = rung.samples, rung_after(rung, dict.fromkeys((*rung.steered, *rung.plain), 0.0))


@dataclass(frozen=True)
class Budget:
    """How many generated tokens a search and its test may take; `tokens` None: any number.

    All answers depend on finished stages alone, so a resumed search decides as it did before.
    """

    tokens: int | None
    problems: int  # to tune on
    held_out: int

    def first_candidates(self, spent: int, mean_tokens: float, plain: int, samples: int) -> float:
        """Return how many steered settings the first rung can have beside `plain` temperatures."""
        if self.tokens is None:
            return math.inf
        return (SEARCH_SHARE * self.tokens - spent) // (self.problems * samples * mean_tokens) - plain

    def allows(self, spent: int, mean_tokens: float, samples: int) -> bool:
        """Return whether the search may take `samples` more samples of each problem."""
        return self.tokens is None or spent + self.problems * samples * mean_tokens <= SEARCH_SHARE * self.tokens

    def test_samples(self, spent: int, mean_tokens: float, wanted: int) -> int:
        """Return how many samples of each problem and arm the test can have, at most `wanted`."""
        if self.tokens is None:
            return wanted
        return min(wanted, int((self.tokens - spent) / (TEST_ARMS * self.held_out * mean_tokens)))

    def least(self, spent: int, mean_tokens: float, plain: int, samples: int) -> int:
        """Return the smallest budget for two settings in the first rung, and a test."""
        search = spent + self.problems * samples * mean_tokens * (plain + 2)
        test = TEST_ARMS * self.held_out * mean_tokens * FEWEST_TEST_SAMPLES
        return math.ceil(max(search / SEARCH_SHARE, search + test))
