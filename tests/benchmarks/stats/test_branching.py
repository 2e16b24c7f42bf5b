"""The value of as many plain tokens as a tree costs: exact votes, unbiased whatever lengths and answers go with."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from steerdec.benchmarks.stats.branching import OUTCOMES, Trees, trees_of
from steerdec.benchmarks.stats.pairing import ArmTable
from steerdec.benchmarks.stats.votes import majority_of_subset

B = 4
RIGHT, WRONG, OTHER, NONE = 0, 1, 2, -1
CHANCE = {RIGHT: 0.45, WRONG: 0.25, OTHER: 0.2, NONE: 0.1}
LENGTH = {RIGHT: 10.0, WRONG: 30.0, OTHER: 14.0, NONE: 50.0}  # wrong answers are longer, as they are


def by_listing(answers: list[int], size: int) -> float:
    """Return the chance by listing all subsets; answer 0 is right, -1 is none."""
    won = []
    for chosen in combinations(answers, size):
        votes = Counter(a for a in chosen if a != NONE)
        winners = [a for a, n in votes.items() if n == max(votes.values())]
        won.append(1 / len(winners) if RIGHT in winners else 0.0)
    return float(np.mean(won))


@pytest.mark.parametrize(
    "answers",
    [[0, 0, 1, 1, 2], [0], [1], [-1, -1], [0, -1, -1], [0, 1, 2, 3, 4], [0, 0, 0, 1, 1, 2, 2, -1], [1, 1, 0, 2, 0, 2]],
)
def test_the_majority_of_a_subset_is_that_of_all_subsets_listed(answers: list[int]) -> None:
    counts = Counter(answers)
    wrong = [n for a, n in counts.items() if a > 0]
    right = [counts[RIGHT]] if counts[RIGHT] else []
    for size in range(len(answers) + 1):
        expected = by_listing(answers, size) if size else 0.0
        assert majority_of_subset(right, wrong, counts[NONE], size) == pytest.approx(expected)


def test_two_right_answers_are_two_votes_that_both_count() -> None:
    assert majority_of_subset([1, 1], [1], 0, 3) == pytest.approx(2 / 3)


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="size is 3; 0 to 2 is allowed"):
        majority_of_subset([1], [1], 0, 3)


def table(answers: np.ndarray, tokens: np.ndarray) -> ArmTable:
    """Return samples with these answers, [n_problems, samples]; 0 is right, -1 is none."""
    shape = answers.shape
    return ArmTable(
        present=np.ones(shape, bool),
        correct=(answers == RIGHT).astype(np.float64),
        tokens=tokens.astype(np.float64),
        truncated=np.zeros(shape),
        answer=answers,
        text=np.zeros(shape, np.int64),
        failed=np.zeros(shape, bool),
        seed=np.zeros(shape, np.int64),
    )


def drawn(n: int, samples: int, seed: int) -> tuple[ArmTable, ArmTable, ArmTable]:
    """Draw (arm, roots, plain): roots are the plain samples, and a continuation repeats its root at half the cost."""
    rng = np.random.default_rng(seed)
    plain = rng.choice(list(CHANCE), p=list(CHANCE.values()), size=(n, samples))
    lengths = np.vectorize(LENGTH.__getitem__)(plain)
    repeated = np.repeat(np.arange(0, samples, B), B)
    return table(plain[:, repeated], lengths[:, repeated] / 2), table(plain, lengths), table(plain, lengths)


def plainly(trees: Trees, outcome: str) -> tuple[float, float]:
    tree, plain = trees.values(outcome, trees.counted[None, :].astype(np.float64))
    return float(tree[0]), float(plain[0])


@pytest.mark.parametrize("samples", [8, 32])
def test_the_value_of_as_many_tokens_is_unbiased(samples: int) -> None:
    """Lengths go with answers, and n is estimated from the same samples. A tree costs 3 plain samples."""
    studies = [trees_of(*drawn(40, samples, seed), B) for seed in range(150)]
    p = CHANCE[RIGHT]
    votes = [(a, b, c, CHANCE[a] * CHANCE[b] * CHANCE[c]) for a in CHANCE for b in CHANCE for c in CHANCE]
    majority = sum(chance * by_listing([a, b, c], 3) for a, b, c, chance in votes)
    exact = {"any right": 1 - (1 - p) ** 3, "majority": majority, "accuracy": p}
    for outcome in OUTCOMES:
        found = np.array([plainly(trees, outcome) for trees in studies])
        se = found.std(axis=0, ddof=1) / math.sqrt(len(studies))
        assert abs(found[:, 0].mean() - p) < 4 * se[0]
        assert abs(found[:, 1].mean() - exact[outcome]) < 4 * se[1] + 0.001


def test_between_two_numbers_of_samples_the_value_is_interpolated() -> None:
    arm, roots, plain = drawn(40, 16, seed=1)
    trees = trees_of(table(arm.answer, arm.tokens * 1.1), roots, plain, B)
    weights = trees.counted[None, :].astype(np.float64)
    n = float(trees.plain_samples(weights)[0])
    assert 3 < n < 4
    by_size = trees.plain["any right"].mean(axis=0)
    assert plainly(trees, "any right")[1] == pytest.approx((4 - n) * by_size[3] + (n - 3) * by_size[4])


def test_a_problem_without_a_whole_tree_does_not_count() -> None:
    arm, roots, plain = drawn(12, 8, seed=2)
    arm.correct[0, [1, 5]] = np.nan  # one leaf of each of its trees
    arm.correct[1, 1] = np.nan
    trees = trees_of(arm, roots, plain, B)
    assert trees.counted.tolist() == [False] + [True] * 11
    assert trees.whole.tolist() == [0, 1] + [2] * 10
    assert trees.tree["accuracy"][1] == roots.correct[1, 4]
    rest = trees_of(*(ArmTable(**{k: v[1:] for k, v in vars(t).items()}) for t in (arm, roots, plain)), B)
    assert plainly(trees, "majority") == plainly(rest, "majority")


def test_a_tree_that_costs_more_than_all_plain_samples_has_nothing_beside_it() -> None:
    arm, roots, plain = drawn(12, 8, seed=3)
    tree, beside = plainly(trees_of(table(arm.answer, arm.tokens * 10), roots, plain, B), "any right")
    assert np.isfinite(tree)
    assert np.isnan(beside)
