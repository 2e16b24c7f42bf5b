"""uniform_top_k in plain float64 torch."""

from __future__ import annotations

import math

from torch import Tensor

from steerdec.policies.steered import Steered
from steerdec.policies.uniform_top_k.fields import K


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' = inf and the k-th largest logit as the floor; the smallest finite one if fewer are finite."""
    finite = z[z > -math.inf]
    return Steered(math.inf, float(finite.topk(min(int(floats[K]), finite.numel())).values[-1]))
