"""Descriptive analyses beside the declared comparisons: dose trend, difficulty strata, mediators. Pure.

None of them is corrected for multiplicity and none decides a claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .comparisons import Spread, problem_differences
from .estimators import ALPHA, ROUNDING, Counts, Estimate, Floats, mean_over_problems, student, unknown

# Label, lowest and highest baseline accuracy; a stratum holds its lower bound, the last one both.
STRATA = (("hard", 0.0, 0.25), ("medium", 0.25, 0.75), ("easy", 0.75, 1.0))


def dose_trend(doses: Sequence[float], arms: Sequence[Counts]) -> Estimate:
    """Return the least-squares slope of a problem's accuracy on the dose, averaged over problems (accuracy per unit).

    Every problem has its own slope (a linear contrast of its arms), so the problem stays the cluster and its difficulty
    drops out. A problem without a graded sample in one of the arms drops out.
    """
    accuracy = np.stack([arm.accuracy for arm in arms], axis=1)  # [n_problems, n_doses]
    centred = np.asarray(doses, dtype=np.float64) - np.mean(doses)
    if len(set(doses)) < 2:
        return unknown(0, len(accuracy), np.nan, "a trend needs two different doses")
    return mean_over_problems(accuracy @ centred / np.sum(centred**2))


def difficulty_strata(sorting: Counts, arm: Counts, against: Counts) -> list[tuple[str, Estimate]]:
    """Return the difference in each stratum of `sorting` accuracy, for "problems like these".

    `sorting` must be other samples of the baseline than `against`. Sorted by the very samples it is compared with, a
    problem counts as easy where the baseline was lucky, and the arm then seems to lose there and to win where it is
    hard (regression to the mean).
    """
    difficulty, differences = sorting.accuracy, problem_differences(arm, against)
    strata = []
    for label, low, high in STRATA:
        inside = (difficulty >= low) & ((difficulty < high) | (high == 1.0))
        strata.append((label, mean_over_problems(differences[inside])))
    return strata


@dataclass(frozen=True)
class Truncation:
    """A difference in accuracy in two parts that add up to it."""

    by_finishing: Estimate  # more or fewer samples finish before the token limit
    by_answers: Estimate  # those that finish are right more or less often


def truncation_parts(arm: Counts, arm_finished: ArrayLike, against: Counts, against_finished: ArrayLike) -> Truncation:
    """Split acc = f q per problem (f the finished share, q the accuracy of the finished), after Kitagawa (1955).

    acc_a - acc_b = (f_a - f_b) (q_a + q_b) / 2 + (q_a - q_b) (f_a + f_b) / 2. A truncated sample counts as wrong, so
    acc = f q holds. Where no sample of an arm finished, its q is unknown and taken from the other arm: the whole
    difference is then one of finishing.

    Args:
        arm_finished: graded samples that were not cut at the token limit; [n_problems].
        against_finished: the same of `against`; [n_problems].
    """
    f_a, q_a = _finished(arm, arm_finished)
    f_b, q_b = _finished(against, against_finished)
    q_a, q_b = np.where(np.isnan(q_a), q_b, q_a), np.where(np.isnan(q_b), q_a, q_b)
    neither = np.isnan(q_a) & (f_a == 0) & (f_b == 0)
    q_a, q_b = np.where(neither, 0.0, q_a), np.where(neither, 0.0, q_b)
    return Truncation(
        by_finishing=mean_over_problems((f_a - f_b) * (q_a + q_b) / 2),
        by_answers=mean_over_problems((q_a - q_b) * (f_a + f_b) / 2),
    )


def _finished(arm: Counts, finished: ArrayLike) -> tuple[Floats, Floats]:
    done = Counts(np.asarray(finished, dtype=np.int64), arm.graded)
    return done.accuracy, Counts(arm.correct, done.correct).accuracy


def difference_at_equal_length(differences: ArrayLike, log_length_ratio: ArrayLike) -> Estimate:
    """Return the difference at equal answer length.

    It is the intercept of the per-problem difference on log(mean tokens of arm / of against). Descriptive: length is an
    outcome of the arm too, so this is not the causal effect "not through length".
    """
    y, x = np.asarray(differences, dtype=np.float64), np.asarray(log_length_ratio, dtype=np.float64)
    keep = np.isfinite(y) & np.isfinite(x)
    n, dropped = int(np.sum(keep)), int(np.sum(~keep))
    if n < 3 or np.ptp(x[keep]) == 0:
        return unknown(n, dropped, np.nan, "needs three problems whose answers change in length by different amounts")
    fit = scipy.stats.linregress(x[keep], y[keep])
    if not fit.intercept_stderr > ROUNDING:  # also NaN, where the differences are all equal
        return unknown(n, dropped, float(fit.intercept), "the differences lie on a line, so the spread is not known")
    return student(float(fit.intercept), float(fit.intercept_stderr), n - 2.0, n, dropped)


@dataclass(frozen=True)
class Variation:
    """How much the true effect varies between problems (a standard deviation), with its interval."""

    sd: float
    ci95: tuple[float, float]
    p: float  # of no variation
    effects: Floats  # [n_problems], each shrunken towards the mean by the share of the spread that is noise


def variation(spread: Spread) -> Variation:
    """Return the spread of a difference between problems beyond the sampling noise, and shrunken effects.

    The observed variance is that of the effects plus the mean noise; times n - 1 over their sum it is taken as
    chi-squared with n - 1 degrees of freedom, which gives interval and p. The effects are those of Efron and Morris
    (1973).
    """
    kept = ~np.isnan(spread.differences)
    d, n = spread.differences[kept], int(kept.sum())
    effects: Floats = np.full(len(kept), np.nan)
    if n < 2:
        return Variation(np.nan, (np.nan, np.nan), np.nan, effects)
    noise, total = float(np.mean(spread.variance[kept])), float(np.var(d, ddof=1))
    between = max(0.0, total - noise)
    effects[kept] = d.mean() + (between / total if total > 0 else 0.0) * (d - d.mean())
    bounds = [(n - 1) * total / scipy.stats.chi2.ppf(q, n - 1) - noise for q in (1 - ALPHA / 2, ALPHA / 2)]
    low, high = (float(np.sqrt(max(0.0, bound))) for bound in bounds)
    p = float(scipy.stats.chi2.sf((n - 1) * total / noise, n - 1)) if noise > 0 else np.nan
    return Variation(float(np.sqrt(between)), (low, high), p, effects)
