"""entropy_target in plain float64 torch."""

from __future__ import annotations

import math

from torch import Tensor

from steerdec.policies.entropy_target.fields import DELTA, HIGH, LOW
from steerdec.policies.steered import Steered
from steerdec.softmax.reference import entropy_nats
from steerdec.steering.encoding import REQUEST_T


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' of a fork; `z` is one row."""
    target_nats = entropy_nats(z[None] / floats[REQUEST_T]).item() + floats[DELTA]
    return Steered(target_temperature(z, target_nats, floats[LOW], floats[HIGH]))


def target_temperature(z: Tensor, target_nats: float, low: float, high: float) -> float:
    """Return T' in [low, high] at which softmax(z / T') has entropy `target_nats`; the nearer end if none has.

    `z` is one row. Entropy grows with temperature, so bisection on log T' finds it.
    """
    if entropy_nats(z[None] / low).item() >= target_nats:
        return low
    if entropy_nats(z[None] / high).item() <= target_nats:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if entropy_nats(z[None] / middle).item() < target_nats else (low, middle)
    return math.sqrt(low * high)
