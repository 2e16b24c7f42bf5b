"""Intervals by resampling whole problems: the tokens and samples of one problem are not independent of each other.

A resample is a weight a problem (how often it was drawn), so statistics are weighted sums and nothing is copied. The
intervals are percentile intervals; the generator is given, never global.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES: Final = 2000
_GRID: Final = 8192  # cells of a quantile's cumulative distribution, each of equal mass


def weights(n_problems: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """[resamples, n_problems]: how often each problem was drawn, n draws with replacement."""
    rng = np.random.default_rng([seed, n_problems])
    return rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=resamples).astype(np.float64)


def interval(values: ArrayLike) -> tuple[float, float] | None:
    """The middle 95% of resampled values; None where some resample had none."""
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def ratio(numerator: Floats, denominator: Floats, w: Floats) -> Floats:
    """[resamples]: sum of w x numerator over sum of w x denominator, both [n_problems]; NaN over nothing."""
    top, bottom = w @ numerator, w @ denominator
    return np.asarray(np.divide(top, bottom, out=np.full(len(w), np.nan), where=bottom > 0), dtype=np.float64)


def quantiles(values: Floats, groups: Ints, at: Floats, w: Floats) -> Floats:
    """[resamples, len(at)]: quantiles of the resampled values.

    Args:
        values: [n].
        groups: [n], which problem (a column of `w`) a value belongs to.

    The values are put into at most 8,192 cells of equal mass, a cell standing for its upper end: a quantile is off by
    less than 1/8,192 of the mass, and not at all with fewer values.
    """
    order = np.argsort(values, kind="stable")
    cell = np.arange(len(values)) * min(_GRID, len(values)) // len(values)
    upper = values[order][np.flatnonzero(np.diff(cell, append=cell[-1] + 1))]
    counts = np.zeros((w.shape[1], int(cell[-1]) + 1))
    np.add.at(counts, (groups[order], cell), 1.0)
    mass = np.cumsum(w @ counts, axis=1)
    wanted = mass[:, -1:] * at
    found = np.stack([np.searchsorted(m, x - 1e-9) for m, x in zip(mass, wanted, strict=True)])
    chosen: Floats = upper[np.minimum(found, len(upper) - 1)]
    return chosen
