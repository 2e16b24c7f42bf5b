"""p_less on a CPU, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steerdec.policies.p_less.fields import FORK_FACTOR, FORK_T
from steerdec.softmax.cpu import NO_FLOOR, collision, jit


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' of a fork, the factor T / T', and the floor."""
    temperature, floor = np.float64(f[FORK_T]), NO_FLOOR
    if temperature > 0.0:
        floor = np.float32(top + temperature * math.log(collision(z, top, temperature)))
    return temperature, f[FORK_FACTOR], floor
