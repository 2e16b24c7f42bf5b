"""Compare drawn tokens with the distribution they should come from, and say what the comparison could have seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

COMMON: Final = 10  # expected draws from which on a token has a bin of its own


def chi_square(tokens: NDArray[np.int64], p: Floats) -> tuple[float, int]:
    """Return the p-value of the draws under `p` [vocab], and the number of bins; rare tokens share one.

    The p-value is 0 where a token was drawn that `p` says cannot be.
    """
    if (p[tokens] == 0).any():
        return 0.0, 0
    n = len(tokens)
    counts = np.bincount(tokens, minlength=len(p))
    common = p * n >= COMMON
    observed = np.append(counts[common], counts[~common].sum())
    theory = np.append(p[common], p[~common].sum()) * n
    if theory[-1] < 5:
        observed, theory = observed[:-1], theory[:-1] * observed[:-1].sum() / theory[:-1].sum()
    return float(stats.chisquare(observed, theory).pvalue), len(observed)


def power(p: Floats, other: Floats, draws: int, alpha: float) -> float:
    """Return the chance that `chi_square` of draws from `other` [vocab] under `p` [vocab] falls below `alpha`."""
    common = p * draws >= COMMON
    expected, truth = (np.append(q[common], q[~common].sum()) for q in (p, other))
    if expected[-1] * draws < 5:
        expected, truth = expected[:-1] / expected[:-1].sum(), truth[:-1] / truth[:-1].sum()
    df = len(expected) - 1
    if df < 1:
        return 0.0
    noncentrality = draws * float(((truth - expected) ** 2 / expected).sum())
    return float(stats.ncx2.sf(stats.chi2.isf(alpha, df), df, max(noncentrality, 1e-12)))


def detectable(
    of: Callable[[float], Floats], at: float, draws: int, *, alpha: float = 1e-3, wanted: float = 0.9
) -> float | None:
    """Return the smallest deviation upward from `at` that is detected with probability `wanted`; None if none up to 1.

    `of(x)` is the distribution [vocab] when the parameter is x.
    """
    p = of(at)
    if power(p, of(at + 1.0), draws, alpha) < wanted:
        return None
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if power(p, of(at + middle), draws, alpha) >= wanted else (middle, high)
    return high
