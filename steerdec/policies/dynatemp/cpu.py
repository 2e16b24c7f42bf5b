"""dynatemp on a CPU, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steerdec.policies.dynatemp.fields import EXPONENT, HIGH, LOW
from steerdec.softmax.cpu import NO_FLOOR, jit
from steerdec.steering.encoding import REQUEST_T


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' of a fork, the factor T / T', and no floor."""
    low, high = np.float64(f[LOW]), np.float64(f[HIGH])
    temperature = low + (high - low) * (h / math.log(z.size)) ** np.float64(f[EXPONENT]) if z.size > 1 else low
    return temperature, np.float32(np.float64(f[REQUEST_T]) / temperature), NO_FLOOR
