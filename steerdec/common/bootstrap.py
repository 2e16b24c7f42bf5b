"""Percentile intervals by resampling whole problems: the tokens and samples of one problem are not independent.

A bootstrap draw is one weight per problem, how often the problem was drawn; so statistics are weighted sums and nothing
is copied. The generator is given, never global.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS: Final = 2000
_GRID: Final = 8192  # cells of a quantile's cumulative distribution, each of equal mass


def weights(n_problems: int, rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Draw `n_problems` problems with replacement, `draws` times; [draws, n_problems], how often each was drawn."""
    chosen = rng.integers(n_problems, size=(draws, n_problems)) + n_problems * np.arange(draws)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=draws * n_problems)
    return counts.reshape(draws, n_problems).astype(np.float64)


def interval(values: ArrayLike) -> tuple[float, float] | None:
    """Return the middle 95% of the values of all bootstrap draws; None where a draw had no value."""
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Floats, rng: np.random.Generator) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of one value per problem, [n_problems]; None for fewer than two problems."""
    return interval(weights(len(values), rng) @ values / len(values)) if len(values) > 1 else None


def ratio(numerator: Floats, denominator: Floats, w: Floats) -> Floats:
    """Return sum(w numerator) / sum(w denominator), both [n_problems], for every draw; [draws], NaN over nothing."""
    top, bottom = w @ numerator, w @ denominator
    return np.asarray(np.divide(top, bottom, out=np.full(len(w), np.nan), where=bottom > 0), dtype=np.float64)


def quantiles(values: Floats, groups: Ints, at: Floats, w: Floats) -> Floats:
    """Return the quantiles `at` of the values of every draw; [draws, len(at)].

    The values are put into at most 8,192 cells of equal mass, and each cell is represented by its upper end: a quantile
    is off by less than 1/8,192 of the mass, and exact with fewer values.

    Args:
        values: [n].
        groups: [n], the problem (a column of `w`) of each value.
        w: [draws, n_problems], from `weights`.
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
