"""uniform_top_k on a CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from steerdec.policies.uniform_top_k.fields import K
from steerdec.softmax.cpu import jit, kth_largest


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' = inf, the factor 0, and the floor of a fork."""
    return np.inf, np.float32(0.0), kth_largest(z, top, f[K])
