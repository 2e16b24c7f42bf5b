"""split on a CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from steerdec.policies.split.fields import FORK_FACTOR, FORK_T
from steerdec.softmax.cpu import NO_FLOOR, jit


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' of a fork, the factor T / T', and no floor."""
    return np.float64(f[FORK_T]), f[FORK_FACTOR], NO_FLOOR
