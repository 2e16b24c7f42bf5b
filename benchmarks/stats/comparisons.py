"""Compare two arms problem by problem: the difference in two populations, and what its p-values need. Pure.

A difference is the mean over problems of (arm - against), each problem weighing the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import scipy.special
import scipy.stats

from steerdec.records.summary import Population

from .estimators import ALPHA, ROUNDING, Counts, Estimate, Floats, Ints
from .rare import RareParts, rare_parts

SCOPES: Final[tuple[Population, Population]] = ("these problems", "problems like these")
THESE_PROBLEMS, PROBLEMS_LIKE_THESE = SCOPES

POWER = 0.8
FEW = 10  # fewer parts (problems, or samples) that differ are too few for Student's t


@dataclass(frozen=True)
class Spread:
    """The differences of single problems, and what is known of their sampling noise; arrays of shape [n_problems].

    `variance`: of each difference, over samples; `df`: its degrees of freedom. `samples`: the single samples as rare
    gains and losses, None where they are not bounded. `bounded`: the differences lie within -1 and 1.
    """

    differences: Floats  # NaN where a problem has no common sample
    variance: Floats
    df: Floats
    samples: RareParts | None
    bounded: bool
    groups: Ints | None = None


@dataclass(frozen=True)
class DifferenceEstimate(Estimate):
    """An estimate with its one-sided p-values; `rare` holds where few parts differ, None for what has no bounds."""

    p_greater: float = np.nan  # of "it is 0 or less"
    p_less: float = np.nan  # of "it is 0 or more"
    rare: RareParts | None = None
    clusters: int = 0  # problems, or groups of problems


def spread_of_samples(
    a: Floats,
    b: Floats,
    *,
    by_seed: bool,
    bounded: bool,
    sample_bounded: bool | None = None,
    groups: Ints | None = None,
) -> Spread:
    """Return the differences of problems from tables of samples, [n_problems, samples], NaN where one is missing.

    Arms that draw with the same seeds are paired: the variance is that of the differences x_arm - x_against within a
    problem, which is unbiased however much the arms have in common. Others are independent. One sample alone has
    its square for a variance, which is never too small on average.
    """
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = np.where(kept, a, 0.0), np.where(kept, b, 0.0)
    x = a - b
    k = kept.sum(axis=1).astype(np.float64)
    some = np.maximum(k, 1.0)
    differences = np.where(k > 0, x.sum(axis=1) / some, np.nan)
    squares = _centered(x, kept, some) if by_seed else _centered(a, kept, some) + _centered(b, kept, some)
    alone = (x**2).sum(axis=1)
    variance = np.where(k > 1, squares / np.maximum(k - 1, 1.0) / some, alone)
    parts = None
    if bounded if sample_bounded is None else sample_bounded:
        n = max(int(np.sum(k > 0)), 1)
        weights = np.broadcast_to((1 / (n * some))[:, None], x.shape)
        parts = rare_parts(x[kept], weights[kept])
    df = np.where(k > 1, (k - 1) * (1.0 if by_seed else 2.0), 1.0)
    return Spread(differences, variance, df, parts, bounded, groups)


def _centered(values: Floats, kept: np.ndarray, k: Floats) -> Floats:
    """Return the sum of squares around the mean of each row."""
    mean = values.sum(axis=1) / k
    squares: Floats = (np.where(kept, values - mean[:, None], 0.0) ** 2).sum(axis=1)
    return squares


def difference(spread: Spread, population: Population, extra_sd: float = 0.0) -> DifferenceEstimate:
    """Return the mean difference with its 95% interval and p-values in one population.

    `extra_sd`: standard deviation of an error of the difference that is not one of sampling (see `dose_error`).

    "problems like these": the problems, or groups of problems, are a sample; Student's t over them.
    "these problems": the problems are fixed and only the sampling within them is random; their variances are added,
    with the degrees of freedom of Satterthwaite (1946).

    Where fewer than ten problems (samples) differ at all, interval and p are those of rare events.
    """
    kept = ~np.isnan(spread.differences)
    n, dropped = int(kept.sum()), int(np.sum(~kept))
    if n == 0:
        return _unknown(0, dropped, np.nan, "no problem has graded samples in both arms")
    d = spread.differences[kept]
    value, clusters = float(d.mean()), n
    if population == THESE_PROBLEMS:
        variance = spread.variance[kept]
        total = float(variance.sum())
        noise = float(np.sum(variance**2 / spread.df[kept]))
        se, df, rare = np.sqrt(total) / n, (total**2 / noise if noise > 0 else np.inf), spread.samples
    else:
        rare = rare_parts(d, np.full(n, 1 / n)) if spread.bounded else None
        if spread.groups is None:
            se, df = (
                (float(np.std(d, ddof=1) / np.sqrt(n)) if np.ptp(d) > ROUNDING else 0.0) if n > 1 else np.nan,
                n - 1.0,
            )
        else:
            groups = np.unique(spread.groups[kept], return_inverse=True)[1]
            clusters = int(groups.max()) + 1
            sums = np.bincount(groups, weights=d - value)
            se = np.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / n if clusters > 1 else np.nan
            df = clusters - 1.0
        if clusters == 1:
            return _unknown(n, dropped, value, "one problem says nothing about problems like it")
    if extra_sd > 0 and rare is not None:
        rare = replace(rare, extra_sd=extra_sd)
    return _estimate(value, float(se), df, n, dropped, rare, clusters, extra_sd)


def _estimate(
    value: float,
    se: float,
    df: float,
    n: int,
    dropped: int,
    rare: RareParts | None,
    clusters: int,
    extra_sd: float,
) -> DifferenceEstimate:
    note, few = "", rare is not None and (rare.events < FEW or not se > 0)
    se = float(np.hypot(se, extra_sd)) if se > 0 or few else se
    if few and rare is not None:
        low, high = rare.limits(ALPHA / 2)
        greater, less = rare.p_below(0.0), rare.p_above(0.0)
        note = "few samples or problems differ, so the interval is that of rare events"
    elif not se > 0:
        note = f"all {n} problems show the same value, so their spread is not known"
        equal = abs(value) <= ROUNDING
        return DifferenceEstimate(
            value, 0.0, df, (np.nan, np.nan), 1.0 if equal else np.nan, n, dropped, note, rare=rare, clusters=clusters
        )
    else:
        half = float(scipy.special.stdtrit(df, 1 - ALPHA / 2)) * se
        low, high = value - half, value + half
        less = float(scipy.special.stdtr(df, value / se))
        greater = float(scipy.special.stdtr(df, -value / se))
    if rare is not None:
        low, high = max(low, -1.0), min(high, 1.0)
    p = min(1.0, 2 * min(greater, less))
    return DifferenceEstimate(value, se, df, (low, high), p, n, dropped, note, greater, less, rare, clusters)


def _unknown(n: int, dropped: int, value: float, note: str) -> DifferenceEstimate:
    return DifferenceEstimate(value, np.nan, np.nan, (np.nan, np.nan), np.nan, n, dropped, note, clusters=n)


def equivalence_p(estimate: DifferenceEstimate, delta: float) -> float:
    """Return p of the two one-sided tests (Schuirmann 1987) for a true value between -delta and +delta.

    Two tests have to agree: Student's, and that of rare events, which always allows for one more problem (sample) that
    flips and was not seen. So few differences never look like certainty, and the p at "all equal" is next to that at
    "one differs". NaN where nothing is known.
    """
    if not delta > 0:
        raise ValueError(f"delta is {delta}; a number above 0 is allowed, such as 0.02 for 2 points")
    by_t, by_events = np.nan, np.nan
    if estimate.se > 0:
        above = scipy.special.stdtr(estimate.df, (estimate.value - delta) / estimate.se)
        below = scipy.special.stdtr(estimate.df, -(estimate.value + delta) / estimate.se)
        by_t = float(max(above, below))
    if estimate.rare is not None and not np.isnan(estimate.se):
        by_events = max(estimate.rare.p_above(delta), estimate.rare.p_below(-delta))
    return float(np.fmax(by_t, by_events))


def excluded_bias(estimate: DifferenceEstimate) -> float:
    """Return the smallest delta for which `equivalence_p` is below 5%: any larger bias would have been seen."""
    if np.isnan(estimate.se):
        return np.nan
    limits = []
    if estimate.rare is not None:
        limits.append(estimate.rare.limits(ALPHA))
    if estimate.se > 0:
        half = float(scipy.special.stdtrit(estimate.df, 1 - ALPHA)) * estimate.se
        limits.append((estimate.value - half, estimate.value + half))
    return max(max(-low, high) for low, high in limits) if limits else np.nan


def minimum_detectable_effect(se: float, df: float) -> float:
    """Return the smallest true difference a two-sided 5% t-test sees with 80% power; NaN if `se` is 0 or not known.

    The noncentrality at which noncentral t exceeds the critical value with that power: 2.80 for many degrees of
    freedom. Not statsmodels' solver: at some fractional degrees of freedom it returns another root (-2.80 at 1480.3).
    """
    if not se > 0:
        return np.nan
    critical = scipy.stats.t.ppf(1 - ALPHA / 2, df)
    return float(se * scipy.special.nctdtrinc(df, 1 - POWER, critical))


def problem_differences(arm: Counts, against: Counts) -> Floats:
    """Return p_arm - p_against, shape [n_problems], NaN where an arm has no graded sample; the arms' k may differ."""
    return arm.accuracy - against.accuracy
