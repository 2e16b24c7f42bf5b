"""Estimators for repeated samples on a set of problems. Pure; imports nothing of ours.

The data are counts: of `graded[i]` samples of problem i, `correct[i]` are correct. What is estimated
is a mean over problems, every problem weighing the same whatever its number of samples.

A number that cannot be had is NaN, with the reason in `note`; it is never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHA = 0.05  # two-sided; intervals are 1 - ALPHA
ROUNDING = 1e-12  # 3/10 - 2/10 and 2/10 - 1/10 are equal differences


@dataclass(frozen=True)
class Counts:
    """The correct and graded samples of one arm, with the problems in the same order in every arm."""

    correct: Ints  # [n_problems]
    graded: Ints  # [n_problems], 0 where nothing was graded

    def __post_init__(self) -> None:
        correct, graded = np.asarray(self.correct, dtype=np.int64), np.asarray(self.graded, dtype=np.int64)
        if correct.ndim != 1 or correct.shape != graded.shape:
            raise ValueError(f"correct {correct.shape} and graded {graded.shape} must be two lists of one length")
        wrong = np.flatnonzero((correct < 0) | (correct > graded))
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(f"problem {i}: {correct[i]} correct of {graded[i]} graded; 0 to {graded[i]} is allowed")
        object.__setattr__(self, "correct", correct)
        object.__setattr__(self, "graded", graded)

    @property
    def accuracy(self) -> Floats:
        """Return the accuracy by problem, [n_problems]; NaN where nothing was graded."""
        accuracy: Floats = np.full(len(self.graded), np.nan)
        return np.divide(self.correct, self.graded, out=accuracy, where=self.graded > 0)

    def rows(self, keep: NDArray[np.bool_]) -> Counts:
        return Counts(self.correct[keep], self.graded[keep])


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its Student interval."""

    value: float
    se: float
    df: float
    ci95: tuple[float, float]
    p: float  # two-sided, against 0
    n_problems: int
    dropped: int = 0  # problems without a graded sample in an arm
    note: str = ""


def avg_at_k(arm: Counts) -> Estimate:
    """Mean accuracy with a 95% Student interval over problems: the problem is the cluster.

    The spread of the per-problem accuracies already holds the sampling noise within problems. The interval is cut to
    [0, 1], which cannot change its coverage. Where no problem, or every one, is ever solved it is that of Clopper and
    Pearson (1934) for as many problems.
    """
    estimate = mean_over_problems(arm.accuracy)
    low, high = np.clip(estimate.ci95, 0.0, 1.0)
    note = estimate.note
    if estimate.se == 0 and estimate.value in (0.0, 1.0):
        exact = scipy.stats.binomtest(round(estimate.value * estimate.n_problems), estimate.n_problems)
        low, high = exact.proportion_ci(1 - ALPHA, method="exact")
        note = f"all {estimate.n_problems} problems at {100 * estimate.value:.0f}%; exact interval over problems"
    return Estimate(**{**vars(estimate), "ci95": (float(low), float(high)), "p": np.nan, "note": note})


def pass_at_k(arm: Counts, k: int) -> Floats:
    """Unbiased pass@k = 1 - C(n-c, k) / C(n, k) for n graded and c correct samples; [n_problems], NaN where n < k.

    Equation 1 of arXiv 2107.03374, there a product of c factors. The ratio is the chance that k draws without
    replacement miss all c correct samples; k and c may be exchanged in it, so the shorter of the two products is
    taken, in logarithms.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is allowed")
    return np.array([_pass(int(n), int(c), k) for n, c in zip(arm.graded, arm.correct, strict=True)], dtype=np.float64)


def _pass(n: int, c: int, k: int) -> float:
    if n < k:
        return np.nan
    if n - c < k:
        return 1.0
    few, many = min(c, k), max(c, k)
    return float(-np.expm1(np.sum(np.log1p(-many / (n - np.arange(few, dtype=np.float64))))))


def majority_is_correct(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> bool:
    """Return whether the most frequent answer is correct.

    Samples are in the order of their index, without the ungraded ones. None (no answer) does not vote. Ties go to the
    answer given first. If nobody votes, the result is False. Answers are compared as text: two spellings of one number
    are two answers.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    return bool(correct[list(answers).index(votes.most_common(1)[0][0])])


def mean_over_problems(values: ArrayLike) -> Estimate:
    """Return Student's interval and t-test for the mean of one value per problem; NaN values drop out.

    If all values are equal, there is nothing to estimate a spread from: then there is no interval, p = 1 if the value
    is 0, else the exact sign-flip p = 2^(1-n), and `note` says so.
    """
    everything = np.asarray(values, dtype=np.float64)
    kept = everything[~np.isnan(everything)]
    n, dropped = len(kept), len(everything) - len(kept)
    if n == 0:
        return unknown(n, dropped, np.nan, "no problem has graded samples")
    value = float(np.mean(kept))
    if n == 1:
        return unknown(n, dropped, value, "one problem says nothing about problems like it")
    if np.ptp(kept) <= ROUNDING:
        note = f"all {n} problems show the same value, so their spread is not known"
        p = 1.0 if abs(value) <= ROUNDING else 2.0 ** (1 - n)
        return Estimate(value, 0.0, n - 1.0, (np.nan, np.nan), p, n, dropped, note)
    return student(value, float(np.std(kept, ddof=1) / np.sqrt(n)), n - 1.0, n, dropped)


def student(value: float, se: float, df: float, n_problems: int, dropped: int) -> Estimate:
    """Return `value` with the interval and the two-sided p of Student's t at `df` degrees of freedom (inf: normal)."""
    half = float(scipy.stats.t.ppf(1 - ALPHA / 2, df)) * se
    p = float(2 * scipy.stats.t.sf(abs(value) / se, df))
    return Estimate(value, float(se), df, (value - half, value + half), p, n_problems, dropped)


def student_interval(value: float, se: float, df: float, tail: float) -> tuple[float, float]:
    """Return the limits that Student's t at `df` degrees of freedom misses with chance `tail` on each side."""
    half = float(-scipy.stats.t.ppf(tail, df)) * se
    return value - half, value + half


def unknown(n_problems: int, dropped: int, value: float, note: str) -> Estimate:
    """Return `value` without an interval, and the reason."""
    return Estimate(value, np.nan, np.nan, (np.nan, np.nan), np.nan, n_problems, dropped, note)
