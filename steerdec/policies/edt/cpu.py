"""edt on a CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from steerdec.policies.edt.fields import BASE, LOWEST, THETA
from steerdec.softmax.cpu import NO_FLOOR, jit
from steerdec.steering.encoding import REQUEST_T


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' of a fork, the factor T / T', and no floor."""
    t = np.float64(f[REQUEST_T])
    temperature = max(t * np.float64(f[BASE]) ** (np.float64(f[THETA]) / h), LOWEST) if h > 0 else LOWEST
    return temperature, np.float32(t / temperature), NO_FLOOR
