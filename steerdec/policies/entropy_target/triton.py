# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""entropy_target in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.policies.entropy_target import fields
from steerdec.softmax.triton import measure_at, no_floor
from steerdec.steering import encoding

_REQUEST_T = tl.constexpr(encoding.REQUEST_T)
_DELTA, _LOW, _HIGH = tl.constexpr(fields.DELTA), tl.constexpr(fields.LOW), tl.constexpr(fields.HIGH)
_SOLVED_NATS = tl.constexpr(fields.SOLVED_NATS)
_NEWTON_STEPS, _MAX_STEPS = tl.constexpr(fields.NEWTON_STEPS), tl.constexpr(fields.MAX_STEPS)


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Return T' of a fork, the factor T / T', and no floor."""
    t = tl.load(f_ptr + _REQUEST_T).to(tl.float64)
    delta_nats = tl.load(f_ptr + _DELTA).to(tl.float64)
    low, high = tl.load(f_ptr + _LOW).to(tl.float64), tl.load(f_ptr + _HIGH).to(tl.float64)
    temperature = target_temperature(row_ptr, top, t, delta_nats, low, high, VOCAB, BLOCK)
    return temperature, (t / temperature).to(tl.float32), no_floor()


@triton.jit
def target_temperature(
    row_ptr,
    top,
    request_t,
    delta_nats,
    low,
    high,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Solve `reference.target_temperature` by Newton's method on ln T in a shrinking bracket."""
    h, slope = measure_at(row_ptr, top, request_t, no_floor(), VOCAB, BLOCK)
    target = h + delta_nats
    temperature = tl.minimum(tl.maximum(request_t, low), high)
    if temperature != request_t:
        h, slope = measure_at(row_ptr, top, temperature, no_floor(), VOCAB, BLOCK)
    excess = h - target
    if tl.abs(excess) > _SOLVED_NATS:
        end = tl.where(excess > 0, low, high)
        at_end, _ = measure_at(row_ptr, top, end, no_floor(), VOCAB, BLOCK)
        if (at_end - target) * excess >= 0:  # the nearer end is still on the same side
            temperature = end
            excess = 0.0 * excess
    step = 0
    while (tl.abs(excess) > _SOLVED_NATS) & (step < _MAX_STEPS):
        low, high = tl.where(excess > 0, low, temperature), tl.where(excess > 0, temperature, high)
        newton = temperature * tl.exp(-excess / slope)
        good = (slope > 0) & (step < _NEWTON_STEPS) & (low < newton) & (newton < high)
        temperature = tl.where(good, newton, tl.sqrt(low * high))
        h, slope = measure_at(row_ptr, top, temperature, no_floor(), VOCAB, BLOCK)
        excess = h - target
        step += 1
    return temperature
