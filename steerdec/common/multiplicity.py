"""Correct p-values for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the Holm-adjusted p-values, in order. An unknown p (NaN) stays unknown, but counts as a declared test."""
    if not p_values:
        return []
    missing = np.isnan(np.asarray(p_values, dtype=np.float64))
    adjusted = multipletests(np.where(missing, 1.0, p_values), method="holm")[1]
    return [float(p) for p in np.where(missing, np.nan, adjusted)]
