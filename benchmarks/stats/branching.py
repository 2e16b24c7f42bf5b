"""Trees of continuations beside plain samples that cost as many tokens. Pure.

A tree is a root and b continuations that begin at one place of it; it has 1 + b leaves, and costs the tokens of the
root once and those of every continuation. Its leaves share a prefix, so they are not independent: the unit is the
problem, and nothing here takes leaves for samples.

Over all problems, a tree costs as many tokens as n = C / L plain samples, C the mean cost of a tree and L the mean
length of a plain sample. The plain strategy that costs the same draws floor(n) samples of every problem, and one more
with probability n - floor(n). Its value on a problem follows from the unbiased values of a fixed number of samples
(pass@m, and the majority of m, over all choices of m) by linear interpolation. Where continuations begin at the prompt,
n is 1 + b and both strategies are the same. n is a ratio of means over all problems, so its error is small and with it
the bias; a ratio of its own for every problem would be biased (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import comb
from typing import Final

import numpy as np

from .estimators import Floats, Ints
from .pairing import ArmTable, Bools
from .tally import MISSING
from .votes import majority_of_subset

OUTCOMES: Final = ("any right", "majority", "accuracy")


@dataclass(frozen=True)
class Trees:
    """The trees of one arm and the plain samples, by problem; problems that do not count have NaN.

    `tree`: by outcome, the mean over whole trees, [n_problems]. `plain`: by outcome, the value of 0, 1, ... samples,
    [n_problems, sizes]. `tree_tokens`, `plain_tokens`: mean tokens of a tree and of a sample.
    """

    tree: dict[str, Floats]
    plain: dict[str, Floats]
    tree_tokens: Floats
    plain_tokens: Floats
    whole: Ints  # trees in which everything is graded
    counted: Bools

    def plain_samples(self, weights: Floats) -> Floats:
        """Return n, how many plain samples a tree costs, for weights of problems [draws, n_problems]; [draws]."""
        return _mean(self.tree_tokens, weights) / _mean(self.plain_tokens, weights)

    def values(self, outcome: str, weights: Floats) -> tuple[Floats, Floats]:
        """Return the mean value of a tree and of n plain samples, [draws] each; NaN where there are fewer than n.

        Args:
            weights: [draws, n_problems], 0 for problems that do not count.
        """
        n, most = self.plain_samples(weights), self.plain[outcome].shape[1] - 1
        few = np.clip(np.floor(np.nan_to_num(n)), 0, most - 1).astype(np.int64)
        by_size = np.stack([_mean(self.plain[outcome][:, size], weights) for size in range(most + 1)], axis=1)
        draws = np.arange(len(n))
        plain = by_size[draws, few] + (n - few) * (by_size[draws, few + 1] - by_size[draws, few])
        return _mean(self.tree[outcome], weights), np.where(n <= most, plain, np.nan)


def trees_of(arm: ArmTable, roots: ArmTable, plain: ArmTable, continuations: int) -> Trees:
    """Put the samples of a branching arm and the responses they continue together, beside the plain samples.

    A problem counts if it has a whole tree, and as many graded plain samples as a tree has leaves. The value of plain
    samples is computed up to twice that many, or to all that every problem has.
    """
    n, width = arm.correct.shape
    used = width - width % continuations

    def leaves(root: Floats | Ints, own: Floats | Ints) -> np.ndarray:
        root, own = (t[:, :used].reshape(n, used // continuations, continuations) for t in (root, own))
        return np.concatenate([root[:, :, :1], own], axis=2)

    correct, tokens = leaves(roots.correct, arm.correct), leaves(roots.tokens, arm.tokens)
    answer = leaves(roots.answer, arm.answer)
    whole = ~(np.isnan(correct) | np.isnan(tokens)).any(axis=2)
    graded = ~(np.isnan(plain.correct) | np.isnan(plain.tokens))
    counted = whole.any(axis=1) & (graded.sum(axis=1) > continuations)
    sizes = int(graded.sum(axis=1)[counted].min(initial=2 * (1 + continuations))) + 1
    tree, by_size = {o: np.full(n, np.nan) for o in OUTCOMES}, {o: np.full((n, sizes), np.nan) for o in OUTCOMES}
    tree_tokens, plain_tokens = np.full(n, np.nan), np.full(n, np.nan)
    for i in np.flatnonzero(counted):
        votes = [_votes(c, a) for c, a in zip(correct[i, whole[i]], answer[i, whole[i]], strict=True)]
        tree["any right"][i] = correct[i, whole[i]].any(axis=1).mean()
        tree["majority"][i] = np.mean([majority_of_subset(*vote, 1 + continuations) for vote in votes])
        tree["accuracy"][i] = correct[i, whole[i]].mean()
        own = plain.correct[i, graded[i]]
        by_size["any right"][i] = [_any_right(own, size) for size in range(sizes)]
        vote = _votes(own, plain.answer[i, graded[i]])
        by_size["majority"][i] = [majority_of_subset(*vote, size) for size in range(sizes)]
        by_size["accuracy"][i] = own.mean()
        tree_tokens[i] = tokens[i, whole[i]].sum(axis=1).mean()
        plain_tokens[i] = plain.tokens[i, graded[i]].mean()
    return Trees(tree, by_size, tree_tokens, plain_tokens, whole.sum(axis=1).astype(np.int64), counted)


def _mean(values: Floats, weights: Floats) -> Floats:
    """Return the weighted mean over problems, [draws]; a problem of weight 0 may be NaN. NaN if all weights are 0."""
    total, mean = weights.sum(axis=1), np.full(len(weights), np.nan)
    np.divide(weights @ np.nan_to_num(values), total, out=mean, where=total > 0)
    return mean


def _any_right(correct: Floats, size: int) -> float:
    """Return the share of all choices of `size` samples that have a right one."""
    return 1.0 - comb(int(np.sum(correct == 0)), size) / comb(len(correct), size)


def _votes(correct: Floats, answer: Ints) -> tuple[list[int], list[int], int]:
    """Return how many samples gave each right answer and each wrong one, and how many gave none."""
    given = [(int(a), bool(c)) for a, c in zip(answer, correct, strict=True) if a != MISSING]
    counts = Counter(given)
    right = [count for (_, good), count in counts.items() if good]
    return right, [count for (_, good), count in counts.items() if not good], len(answer) - len(given)
