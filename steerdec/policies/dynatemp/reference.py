"""dynatemp in plain torch."""

from __future__ import annotations

import math

from torch import Tensor

from steerdec.policies.dynatemp.fields import EXPONENT, HIGH, LOW


def steered(z: Tensor, h: float, floats: list[float]) -> float:
    """Return T' of a fork: T = min + (max - min) (H / ln vocab)^exponent, over the full vocabulary."""
    low, high = floats[LOW], floats[HIGH]
    return low + (high - low) * (h / math.log(z.numel())) ** floats[EXPONENT] if z.numel() > 1 else low
