"""Correction of p-values for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values, in the order given. An unknown p (NaN) stays so, but counts as a declared test.

    Not statsmodels' `multipletests`, which collects garbage at every call: half a second in a large process.
    """
    p = np.asarray(p_values, dtype=np.float64)
    missing = np.isnan(p)
    order = np.argsort(np.where(missing, 1.0, p), kind="stable")
    stepped = np.where(missing, 1.0, p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(value) for value in np.where(missing, np.nan, adjusted)]
