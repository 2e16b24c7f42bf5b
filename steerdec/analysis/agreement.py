"""Measure how far two scores of the same units (tokens or sentences of a trace) mark the same units. Pure.

The primary number is the AUROC of one score's top 20% under the other score, within a trace, in both directions. It is
averaged over problems with a cluster bootstrap, because problems were sampled and the tokens of one problem are not
independent. Overlap, Jaccard, kappa, and Spearman are given too. :mod:`nulls` says what chance gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from steerdec.common import bootstrap
from steerdec.common.paper import FORK_SHARE

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CERTAIN_NATS: Final = 0.01  # below this entropy the order of tokens is mostly rounding
FEWEST_UNITS: Final = 4  # a trace with fewer units says nothing about its own order

MEASURES: Final = ("auroc_of_first", "auroc_of_second", "overlap", "jaccard", "kappa", "spearman", "spearman_uncertain")


def top_mask(scores: ArrayLike, share: float = FORK_SHARE, *, seed: int = 0) -> Bools:
    """Select exactly the round(share n) highest scores, at least one; [n]. Ties are broken at random."""
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    mask = np.zeros(n, dtype=np.bool_)
    draw = np.random.default_rng(seed).permutation(n)
    mask[np.lexsort((draw, -values))[: top_count(n, share)]] = True
    return mask


def top_count(n: int, share: float = FORK_SHARE) -> int:
    """Return how many of n units are the top."""
    return max(1, round(share * n))


def auroc(mask: ArrayLike, scores: ArrayLike) -> float:
    """Return the probability that a unit in the mask scores above one outside it.

    Ties count half. NaN if either side is empty. This is Mann-Whitney's U, computed from ranks.
    """
    inside = np.asarray(mask, dtype=np.bool_)
    m, n = int(inside.sum()), inside.size
    if m in (0, n):
        return np.nan
    ranks = scipy.stats.rankdata(np.asarray(scores))
    return float((ranks[inside].sum() - m * (m + 1) / 2) / (m * (n - m)))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return the rank correlation; NaN if one score is constant or there are fewer than FEWEST_UNITS."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < FEWEST_UNITS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    a, b = (scipy.stats.rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))  # takes half the time of scipy's function


def compare(a: ArrayLike, b: ArrayLike, entropy_nats: ArrayLike | None = None) -> dict[str, float]:
    """Compute the MEASURES of two scores of one trace, without units where either is NaN.

    auroc_of_first is that of the first score's top under the second score. By chance: AUROC 0.5, overlap 0.2 (the
    share), Jaccard rho / (2 - rho) = 0.111, kappa 0, Spearman 0. spearman_uncertain uses only units above CERTAIN_NATS
    of entropy, and is NaN without `entropy_nats`. All are NaN if fewer than FEWEST_UNITS are left.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < FEWEST_UNITS:
        return dict.fromkeys(MEASURES, np.nan)
    first, second = top_mask(x, seed=1), top_mask(y, seed=2)
    both, count = int((first & second).sum()), int(first.sum())
    chance = (count / len(x)) ** 2 + (1 - count / len(x)) ** 2
    observed = float(np.mean(first == second))
    uncertain = None if entropy_nats is None else np.asarray(entropy_nats, dtype=np.float64)[known] > CERTAIN_NATS
    return {
        "auroc_of_first": auroc(first, y),
        "auroc_of_second": auroc(second, x),
        "overlap": both / count,
        "jaccard": both / (2 * count - both),
        "kappa": (observed - chance) / (1 - chance),
        "spearman": spearman(x, y),
        "spearman_uncertain": np.nan if uncertain is None else spearman(x[uncertain], y[uncertain]),
    }


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its 95% percentile interval; NaN where it cannot be computed."""

    mean: float
    low: float
    high: float
    n_problems: int


def over_problems(values: Sequence[float], problems: Sequence[str], *, seed: int) -> Interval:
    """Average over problems the mean over their traces, with a cluster bootstrap. NaN values are left out.

    Args:
        values: one per trace.
        problems: the problem of each.
    """
    groups: dict[str, list[float]] = {}
    for value, problem in zip(values, problems, strict=True):
        if not np.isnan(value):
            groups.setdefault(problem, []).append(value)
    means = np.array([np.mean(group) for group in groups.values()])
    if not means.size:
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = bootstrap.mean_interval(means, np.random.default_rng(seed)) or (np.nan, np.nan)
    return Interval(float(means.mean()), low, high, len(means))


def agreement(
    traces: Sequence[Mapping[str, Floats]], problems: Sequence[str], first: str, second: str, *, seed: int
) -> dict[str, Interval]:
    """Compute the MEASURES of two scores over all traces that have both, each as an Interval.

    Each trace's own `entropy` is used. A trace lacks a score if it has no such name, or if the score is NaN nearly
    everywhere.
    """
    rows = [
        compare(trace[first], trace[second], trace.get("entropy"))
        if first in trace and second in trace
        else dict.fromkeys(MEASURES, np.nan)
        for trace in traces
    ]
    return {name: over_problems([row[name] for row in rows], problems, seed=seed) for name in MEASURES}
