"""Arms compared problem by problem: differences in two scopes, and what a p-value needs around it. Pure.

A difference is the mean over problems of (p_arm - p_against).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.special
import scipy.stats

from .estimators import ALPHA, ROUNDING, Counts, Estimate, Floats, mean_over_problems, student, unknown

Scope = Literal["these problems", "problems like these"]
SCOPES: tuple[Scope, Scope] = ("these problems", "problems like these")
THESE_PROBLEMS, PROBLEMS_LIKE_THESE = SCOPES

POWER = 0.8
MAX_SAMPLE_VARIANCE = 0.25  # of one right-or-wrong sample


def problem_differences(arm: Counts, against: Counts) -> Floats:
    """p_arm - p_against, shape [n_problems], NaN where an arm has nothing graded; the arms' k may differ."""
    return arm.accuracy - against.accuracy


def difference(arm: Counts, against: Counts, scope: Scope) -> Estimate:
    """The mean over problems of (p_arm - p_against) with its 95% interval and two-sided p, in one of two scopes.

    "problems like these": the problems are a sample; Student's t over per-problem differences.
    "these problems": the problems are fixed and only the sampling within them is random; see `_binomial_difference`.
    """
    differences = problem_differences(arm, against)
    if scope == PROBLEMS_LIKE_THESE:
        return mean_over_problems(differences)
    keep = ~np.isnan(differences)
    return _binomial_difference(arm.rows(keep), against.rows(keep), int(np.sum(~keep)))


def _binomial_difference(arm: Counts, against: Counts, dropped: int) -> Estimate:
    """Stratified binomial standard error: every (problem, arm) is a stratum of variance p(1-p)/(n-1), unbiased.

    A stratum of one sample gets the largest variance there is, 1/4. Degrees of freedom after Satterthwaite (1946).
    The arms are taken as independent; seeds shared between them make the true error smaller, if anything.
    """
    n_problems = len(arm.graded)
    if n_problems == 0:
        return unknown(0, dropped, np.nan, "no problem has graded samples in both arms")
    value = float(np.mean(arm.accuracy - against.accuracy))
    p = np.concatenate([arm.accuracy, against.accuracy])
    df = np.concatenate([arm.graded, against.graded]) - 1.0
    variance = np.where(df > 0, p * (1 - p) / np.maximum(df, 1.0), MAX_SAMPLE_VARIANCE)
    total = float(np.sum(variance))
    if total == 0.0:
        note = "no problem was answered both right and wrong within an arm, so the sampling noise is not known"
        p_value = 1.0 if abs(value) <= ROUNDING else np.nan
        return Estimate(value, 0.0, np.inf, (np.nan, np.nan), p_value, n_problems, dropped, note)
    estimated = df > 0
    noise = float(np.sum(variance[estimated] ** 2 / df[estimated]))
    return student(value, np.sqrt(total) / n_problems, total**2 / noise if noise > 0 else np.inf, n_problems, dropped)


def equivalence_p(estimate: Estimate, delta: float) -> float:
    """p of the two one-sided tests (Schuirmann 1987) for a true value between -delta and +delta; NaN if not known.

    With no spread at all the t-test is blind, but if every difference is 0 there is a bound: for a true mean of
    delta at least that share of problems must differ, and n problems all miss it with chance (1 - delta)^n at most.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; a fraction between 0 and 1 is allowed, such as 0.02 for 2 points")
    if estimate.se == 0:
        return float((1 - delta) ** estimate.n_problems) if abs(estimate.value) <= ROUNDING else 1.0
    above = scipy.stats.t.sf((estimate.value + delta) / estimate.se, estimate.df)
    below = scipy.stats.t.cdf((estimate.value - delta) / estimate.se, estimate.df)
    return float(max(above, below))


def minimum_detectable_effect(se: float, df: float) -> float:
    """The smallest true difference a two-sided 5% t-test sees with 80% power; NaN if `se` is 0 or not known.

    The noncentrality at which noncentral t exceeds the critical value with that power: 2.80 for many degrees of
    freedom. Not statsmodels' solver: at some fractional degrees of freedom it returns another root (-2.80 at 1480.3).
    """
    if not se > 0:
        return np.nan
    critical = scipy.stats.t.ppf(1 - ALPHA / 2, df)
    return float(se * scipy.special.nctdtrinc(df, 1 - POWER, critical))
