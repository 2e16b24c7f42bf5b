"""entropy_target on a CPU, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steerdec.policies.entropy_target.fields import DELTA, HIGH, LOW, MAX_STEPS, NEWTON_STEPS, SOLVED_NATS
from steerdec.softmax.cpu import NO_FLOOR, jit, measure_at
from steerdec.steering.encoding import REQUEST_T


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    """Return T' of a fork, the factor T / T', and no floor."""
    t = np.float64(f[REQUEST_T])
    temperature = target_temperature(z, top, t, np.float64(f[DELTA]), np.float64(f[LOW]), np.float64(f[HIGH]))
    return temperature, np.float32(t / temperature), NO_FLOOR


@jit
def target_temperature(z: Any, top: Any, request_t: Any, delta_nats: Any, low: Any, high: Any) -> Any:
    """Solve `reference.target_temperature` by Newton's method on ln T in a shrinking bracket."""
    h, slope = measure_at(z, top, request_t, NO_FLOOR)
    target = h + delta_nats
    temperature = min(max(request_t, low), high)
    if temperature != request_t:
        h, slope = measure_at(z, top, temperature, NO_FLOOR)
    excess = h - target
    if excess > SOLVED_NATS and measure_at(z, top, low, NO_FLOOR)[0] >= target:
        return low
    if excess < -SOLVED_NATS and measure_at(z, top, high, NO_FLOOR)[0] <= target:
        return high
    for step in range(MAX_STEPS):
        if abs(excess) <= SOLVED_NATS:
            break
        low, high = (low, temperature) if excess > 0 else (temperature, high)
        temperature = temperature * math.exp(-excess / slope) if slope > 0 and step < NEWTON_STEPS else 0.0
        if not low < temperature < high:
            temperature = math.sqrt(low * high)
        h, slope = measure_at(z, top, temperature, NO_FLOOR)
        excess = h - target
    return temperature
