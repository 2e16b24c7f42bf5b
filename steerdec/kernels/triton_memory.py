# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""`steering.memory` in Triton: what the earlier tokens of a row's request make of it.

A step may have several rows of one request: a token and the drafts after it. Each of their programs begins with the
state before the first of them and goes through the rows before its own, whose entropies it merges again from their
blocks' sums. So no program waits for another, and none reads what another writes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from steerdec.softmax.triton import merge
from steerdec.steering import encoding, memory

_THRESHOLD, _QUANTILE = tl.constexpr(encoding.THRESHOLD), tl.constexpr(encoding.QUANTILE)
_LOWER_SHARE, _NO_QUANTILE = tl.constexpr(encoding.LOWER_SHARE), tl.constexpr(encoding.NO_QUANTILE)
_GUARD_NATS, _GUARD_TOKENS = tl.constexpr(encoding.GUARD_NATS), tl.constexpr(encoding.GUARD_TOKENS)
_NO_GUARD = tl.constexpr(encoding.NO_GUARD)
_POSITION, _TOKENS, _MEAN = (tl.constexpr(c) for c in (memory.POSITION, memory.TOKENS, memory.MEAN))
_LEVEL, _FLAGS, _WORDS = (tl.constexpr(c) for c in (memory.LEVEL, memory.FLAGS, memory.WORDS))
_HIGH, _STOPPED = tl.constexpr(memory.HIGH), tl.constexpr(memory.STOPPED)
_FIRST_STEP, _STEP_OFFSET = tl.constexpr(memory.FIRST_STEP), tl.constexpr(memory.STEP_OFFSET)
_LEAST_STEP, _LEAST_NATS = tl.constexpr(memory.LEAST_STEP), tl.constexpr(memory.LEAST_NATS)


@triton.jit
def _number(word):
    return word.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _before(ring_ptr, f_ptr, position, RING: tl.constexpr):  # noqa: N803
    """Return the state before the token at `position`: tokens, mean, threshold, flags."""
    entry_ptr = ring_ptr + (tl.maximum(position - 1, 0) % RING) * _WORDS
    known = (position > 0) & (tl.load(entry_ptr + _POSITION) == position)
    start = tl.load(f_ptr + _THRESHOLD).to(tl.float64)
    least = tl.full([], _LEAST_NATS, tl.float32).to(tl.float64)
    start = tl.where(tl.load(f_ptr + _QUANTILE) != _NO_QUANTILE, tl.maximum(start, least), start)
    tokens = tl.where(known, tl.load(entry_ptr + _TOKENS), 0)
    mean = tl.where(known, _number(tl.load(entry_ptr + _MEAN)), 0.0)
    level = tl.where(known, _number(tl.load(entry_ptr + _LEVEL)), start)
    return tokens, mean, level, tl.where(known, tl.load(entry_ptr + _FLAGS), 0)


@triton.jit
def _after(f_ptr, h, tokens, mean, level, flags):
    """Do `Rule.after`."""
    known = h == h
    quantile = tl.load(f_ptr + _QUANTILE).to(tl.float64)
    cap, window = tl.load(f_ptr + _GUARD_NATS).to(tl.float64), tl.load(f_ptr + _GUARD_TOKENS).to(tl.float64)
    lower = level * tl.load(f_ptr + _LOWER_SHARE).to(tl.float64)
    above = h > level
    high = above | (((flags & _HIGH) != 0) & (h > lower))
    eta = tl.maximum(_FIRST_STEP / (tokens.to(tl.float64) + _STEP_OFFSET), _LEAST_STEP)
    moved = tl.maximum(level * tl.exp(eta * (quantile - tl.where(above, 0.0, 1.0))), _LEAST_NATS)
    level = tl.where(known & (quantile != _NO_QUANTILE), moved.to(tl.float32).to(tl.float64), level)
    count = tokens + 1
    total = mean + (h - mean) / tl.minimum(count.to(tl.float64), window)
    total = total.to(tl.float32).to(tl.float64)
    stopped = ((flags & _STOPPED) != 0) | ((cap != _NO_GUARD) & (count.to(tl.float64) >= window) & (total > cap))
    now = tl.where(high, _HIGH, 0) | tl.where(stopped, _STOPPED, 0)
    return tl.where(known, count, tokens), tl.where(known, total, mean), level, tl.where(known, now, flags)


@triton.jit
def remembered(
    ring_ptr,  # the request's states, [RING, WORDS] int32
    f_ptr,
    partial_ptr,  # the row's; those of the request's earlier rows in this step are before it
    rows_before,
    position,
    h,
    kept,
    RING: tl.constexpr,  # noqa: N803
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Return the row's threshold, whether its H is high, and whether the guard has stopped; remember it if `kept`."""
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    tokens, mean, level, flags = _before(ring_ptr, f_ptr, position - rows_before, RING)
    back = rows_before
    while back > 0:
        _, _, earlier = merge(partial_ptr - back * 3 * blocks, VOCAB, BLOCK)
        tokens, mean, level, flags = _after(f_ptr, earlier.to(tl.float32).to(tl.float64), tokens, mean, level, flags)
        back -= 1
    threshold = level
    tokens, mean, level, flags = _after(f_ptr, h, tokens, mean, level, flags)
    entry_ptr = ring_ptr + (tl.maximum(position, 0) % RING) * _WORDS
    tl.store(entry_ptr + _POSITION, (position + 1).to(tl.int32), mask=kept)
    tl.store(entry_ptr + _TOKENS, tokens, mask=kept)
    tl.store(entry_ptr + _MEAN, mean.to(tl.float32).to(tl.int32, bitcast=True), mask=kept)
    tl.store(entry_ptr + _LEVEL, level.to(tl.float32).to(tl.int32, bitcast=True), mask=kept)
    tl.store(entry_ptr + _FLAGS, flags, mask=kept)
    return threshold, (flags & _HIGH) != 0, (flags & _STOPPED) != 0
