"""dynatemp in plain torch."""

from __future__ import annotations

import math

from torch import Tensor

from steerdec.policies.dynatemp.fields import EXPONENT, HIGH, LOW
from steerdec.policies.steered import Steered


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' of a fork: T = min + (max - min) (H / ln vocab)^exponent, over the full vocabulary."""
    low, high = floats[LOW], floats[HIGH]
    share = h / math.log(z.numel()) if z.numel() > 1 else 0.0
    return Steered(low + (high - low) * share ** floats[EXPONENT])
