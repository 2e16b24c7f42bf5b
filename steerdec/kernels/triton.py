# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Steering on CUDA: three launches, no synchronisation, no temporary larger than a few numbers a block.

1. `_measure`, grid (rows, blocks): the largest logit of one block of a row, and sum e and sum e d over it.
2. `_decide`, grid (rows,): merges a row's blocks, decides and writes the outcome; solves entropy_target,
   which only rows do that are selected under that policy, and measures at a probe temperature where
   one is asked for. It alone reads the tables, which vLLM keeps
   in host memory.
3. `_apply`, grid (rows, blocks): scales, or returns at once where the factor is 1.

Blocks depend on the vocabulary alone and are merged in one fixed tree without atomics, so a row's
outcome depends neither on its neighbours nor on timing: tensor-parallel ranks decide alike.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerdec.kernels.reference import Outcome
from steerdec.steering import encoding as rows

BLOCK: Final = 4096  # logits a program
# Fusion is asked for by name because the default differs between versions of Triton.
OPTIONS: Final = {"num_warps": 8, "enable_fp_fusion": True}

# What a kernel reads of Python's globals must be marked as constant.
_FLOATS = tl.constexpr(rows.FLOATS)
_THRESHOLD, _REQUEST_T = tl.constexpr(rows.THRESHOLD), tl.constexpr(rows.REQUEST_T)
_FORK_T, _OTHER_T = tl.constexpr(rows.FORK_T), tl.constexpr(rows.OTHER_T)
_FORK_FACTOR, _OTHER_FACTOR = tl.constexpr(rows.FORK_FACTOR), tl.constexpr(rows.OTHER_FACTOR)
_PROBE_T, _APPLIED = tl.constexpr(rows.PROBE_T), tl.constexpr(rows.APPLIED)
_A, _B, _C = tl.constexpr(rows.PARAM_A), tl.constexpr(rows.PARAM_B), tl.constexpr(rows.PARAM_C)
_INTS = tl.constexpr(rows.INTS)
_KIND, _SELECT = tl.constexpr(rows.KIND), tl.constexpr(rows.SELECT)
_KEY, _CUTOFF = tl.constexpr(rows.KEY), tl.constexpr(rows.CUTOFF)
_SPLIT, _ENTROPY_TARGET = tl.constexpr(rows.SPLIT), tl.constexpr(rows.ENTROPY_TARGET)
_DYNATEMP = tl.constexpr(rows.DYNATEMP)
_BY_ENTROPY, _BY_HASH = tl.constexpr(rows.BY_ENTROPY), tl.constexpr(rows.BY_HASH)
_ALWAYS, _BY_POSITION = tl.constexpr(rows.ALWAYS), tl.constexpr(rows.BY_POSITION)
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_SOLVED_NATS = tl.constexpr(1e-4)  # how far from its target entropy_target may end
_NEWTON_STEPS = tl.constexpr(10)  # 4 or 5 are usual; what is not solved then is solved by bisection
_MAX_STEPS = tl.constexpr(60)


@triton.jit
def _load_block(row_ptr, block, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    column = block * BLOCK + tl.arange(0, BLOCK)
    return column, tl.load(row_ptr + column, mask=column < VOCAB, other=-float("inf"))


@triton.jit
def _measure(
    logits_ptr,  # [rows, vocab] float32, rows `row_stride` apart
    row_stride,
    slots_ptr,  # [rows] int32
    partials_ptr,  # [rows, 3, blocks] float32
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(slots_ptr + row) < 0:
        return
    block = tl.program_id(1)
    _, z = _load_block(logits_ptr + row * row_stride, block, VOCAB, BLOCK)
    top = tl.max(z, 0)
    top = tl.where(top == -float("inf"), _LOWEST, top)
    d = z - top
    e = tl.exp(d)
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    partial_ptr = partials_ptr + row * 3 * blocks + block
    tl.store(partial_ptr, top)
    tl.store(partial_ptr + blocks, tl.sum(e, 0))
    tl.store(partial_ptr + 2 * blocks, tl.sum(tl.where(e > 0, e * d, 0.0), 0))


@triton.jit
def _merge(partial_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """The largest logit of a row, the first block that has it, and H; NaN where softmax is undefined."""
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    block = tl.arange(0, triton.next_power_of_2(blocks))
    inside = block < blocks
    tops = tl.load(partial_ptr + block, mask=inside, other=_LOWEST).to(tl.float64)
    partitions = tl.load(partial_ptr + blocks + block, mask=inside, other=0.0).to(tl.float64)
    weighteds = tl.load(partial_ptr + 2 * blocks + block, mask=inside, other=0.0).to(tl.float64)
    top = tl.max(tops, 0)
    d = tops - top
    weights = tl.exp(d)
    partition = tl.sum(weights * partitions, 0)
    weighted = tl.sum(weights * (weighteds + partitions * d), 0)
    # The largest logit alone adds 1, so a smaller sum means that there is none.
    h = tl.where(partition >= 1.0, tl.log(partition) - weighted / partition, float("nan"))
    return top.to(tl.float32), tl.min(tl.where(tops == top, block, blocks), 0), h


@triton.jit
def _measure_at(row_ptr, top, temperature, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """H of softmax(z / T), and dH / d ln T, which is the variance of z / T."""
    beta = (1.0 / temperature).to(tl.float32)
    partition = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    for block in range(0, (VOCAB + BLOCK - 1) // BLOCK):
        _, z = _load_block(row_ptr, block, VOCAB, BLOCK)
        d = beta * (z - top)
        e = tl.exp(d)
        partition += e
        weighted += tl.where(e > 0, e * d, 0.0)
        squared += tl.where(e > 0, e * d * d, 0.0)
    total = tl.sum(partition, 0).to(tl.float64)
    mean = tl.sum(weighted, 0).to(tl.float64) / total
    return tl.log(total) - mean, tl.sum(squared, 0).to(tl.float64) / total - mean * mean


@triton.jit
def _target_temperature(
    row_ptr,
    top,
    request_t,
    delta_nats,
    low,
    high,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """What `reference.target_temperature` solves, by Newton's method on ln T in a shrinking bracket."""
    h, slope = _measure_at(row_ptr, top, request_t, VOCAB, BLOCK)
    target = h + delta_nats
    temperature = tl.minimum(tl.maximum(request_t, low), high)
    if temperature != request_t:
        h, slope = _measure_at(row_ptr, top, temperature, VOCAB, BLOCK)
    excess = h - target
    if tl.abs(excess) > _SOLVED_NATS:
        end = tl.where(excess > 0, low, high)
        at_end, _ = _measure_at(row_ptr, top, end, VOCAB, BLOCK)
        if (at_end - target) * excess >= 0:  # the nearer end is still on the same side
            temperature = end
            excess = 0.0 * excess
    step = 0
    while (tl.abs(excess) > _SOLVED_NATS) & (step < _MAX_STEPS):
        low, high = tl.where(excess > 0, low, temperature), tl.where(excess > 0, temperature, high)
        newton = temperature * tl.exp(-excess / slope)
        good = (slope > 0) & (step < _NEWTON_STEPS) & (low < newton) & (newton < high)
        temperature = tl.where(good, newton, tl.sqrt(low * high))
        h, slope = _measure_at(row_ptr, top, temperature, VOCAB, BLOCK)
        excess = h - target
        step += 1
    return temperature


@triton.jit
def _hash(key, position):
    """`reference.placebo_hash`."""
    x = key.to(tl.uint32, bitcast=True) + position.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return ((x ^ (x >> 16)) >> 8).to(tl.int32)


@triton.jit
def _decide(
    logits_ptr,
    row_stride,
    floats_ptr,  # [slots, FLOATS] float32
    ints_ptr,  # [slots, INTS] int32
    slots_ptr,
    positions_ptr,  # [rows] int64
    in_scope_ptr,  # [rows] uint8, or None
    partials_ptr,
    entropy_ptr,  # [rows] float32, as are temperature, probe and factor
    selected_ptr,  # [rows] uint8
    temperature_ptr,
    probe_ptr,
    factor_ptr,
    keep_block_ptr,  # [rows] int32
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot < 0:
        tl.store(entropy_ptr + row, float("nan"))
        tl.store(selected_ptr + row, 0)
        tl.store(temperature_ptr + row, float("nan"))
        tl.store(probe_ptr + row, float("nan"))
        tl.store(factor_ptr + row, 1.0)
        return
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    top, keep_block, h = _merge(partials_ptr + row * 3 * blocks, VOCAB, BLOCK)
    tl.store(entropy_ptr + row, h.to(tl.float32))
    tl.store(keep_block_ptr + row, keep_block)
    h = h.to(tl.float32).to(tl.float64)  # what is reported is what is decided on

    f_ptr, i_ptr = floats_ptr + slot * _FLOATS, ints_ptr + slot * _INTS
    measured = h == h
    if in_scope_ptr is not None:
        measured = measured & (tl.load(in_scope_ptr + row) != 0)
    select = tl.load(i_ptr + _SELECT)
    position, cutoff = tl.load(positions_ptr + row), tl.load(i_ptr + _CUTOFF)
    hashed = _hash(tl.load(i_ptr + _KEY), position)
    selected = measured & (
        (select == _ALWAYS)
        | ((select == _BY_ENTROPY) & (h > tl.load(f_ptr + _THRESHOLD).to(tl.float64)))
        | ((select == _BY_HASH) & (hashed < cutoff))
        | ((select == _BY_POSITION) & (position < cutoff))
    )
    kind = tl.load(i_ptr + _KIND)
    t = tl.load(f_ptr + _REQUEST_T).to(tl.float64)
    a, b = tl.load(f_ptr + _A).to(tl.float64), tl.load(f_ptr + _B).to(tl.float64)
    c = tl.load(f_ptr + _C).to(tl.float64)
    temperature = t
    factor = (t / t).to(tl.float32)
    if selected:
        if kind == _SPLIT:
            temperature = tl.load(f_ptr + _FORK_T).to(tl.float64)
            factor = tl.load(f_ptr + _FORK_FACTOR)
        else:
            if kind == _ENTROPY_TARGET:
                temperature = _target_temperature(logits_ptr + row * row_stride, top, t, a, b, c, VOCAB, BLOCK)
            elif kind == _DYNATEMP:
                share = h / tl.log(tl.full([], VOCAB if VOCAB > 1 else 2, tl.float64))
                temperature = a + (b - a) * tl.exp(c * tl.log(share))
            else:
                temperature = tl.maximum(t * tl.exp(tl.log(b) * (a / tl.maximum(h, 1e-30))), 0.01)
            factor = (t / temperature).to(tl.float32)
    elif measured:
        temperature = tl.load(f_ptr + _OTHER_T).to(tl.float64)
        factor = tl.load(f_ptr + _OTHER_FACTOR)
    tl.store(selected_ptr + row, selected.to(tl.uint8))
    tl.store(temperature_ptr + row, temperature.to(tl.float32))
    probe_t = tl.load(f_ptr + _PROBE_T).to(tl.float64)
    at = tl.where(probe_t == _APPLIED, temperature, probe_t)
    probed = at * 0.0  # NaN where no probe is asked for
    if (h == h) & (at > 0.0):
        probed, _ = _measure_at(logits_ptr + row * row_stride, top, at, VOCAB, BLOCK)
    tl.store(probe_ptr + row, tl.where(h == h, probed, float("nan")).to(tl.float32))
    tl.store(factor_ptr + row, factor)


@triton.jit
def _apply(
    logits_ptr,
    row_stride,
    factor_ptr,
    keep_block_ptr,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row)
    if factor == 1.0:
        return
    block = tl.program_id(1)
    row_ptr = logits_ptr + row * row_stride
    column, z = _load_block(row_ptr, block, VOCAB, BLOCK)
    if factor == 0.0:  # greedy: the first largest logit alone is kept
        first = tl.min(tl.where(z == tl.max(z, 0), column, VOCAB), 0)
        z = tl.where((column == first) & (block == tl.load(keep_block_ptr + row)), z, -float("inf"))
    else:
        z = z * factor
    tl.store(row_ptr + column, z, mask=column < VOCAB)


def steer_(
    logits: Tensor, floats: Tensor, ints: Tensor, slots: Tensor, positions: Tensor, in_scope: Tensor | None = None
) -> Outcome:
    """`reference.steer_` for float32 logits whose rows are contiguous; see `steerdec.kernel`."""
    n, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    entropy_nats, temperature, probe, factor = (logits.new_empty(n) for _ in range(4))
    selected = logits.new_empty(n, dtype=torch.bool)
    keep_block = logits.new_empty(n, dtype=torch.int32)
    partials = logits.new_empty(n, 3, blocks)
    if n == 0:
        return Outcome(entropy_nats, selected, temperature, probe)
    floats, ints = floats.contiguous(), ints.contiguous()
    slots, positions = slots.to(torch.int32).contiguous(), positions.to(torch.int64).contiguous()
    in_scope = None if in_scope is None else in_scope.contiguous().view(torch.uint8)
    stride = logits.stride(0)
    options = {"VOCAB": vocab, "BLOCK": BLOCK, **OPTIONS}
    with torch.cuda.device_of(logits):
        _measure[(n, blocks)](logits, stride, slots, partials, **options)
        _decide[(n,)](
            *(logits, stride, floats, ints, slots, positions, in_scope, partials),
            *(entropy_nats, selected.view(torch.uint8), temperature, probe, factor, keep_block),
            **options,
        )
        _apply[(n, blocks)](logits, stride, factor, keep_block, **options)
    return Outcome(entropy_nats, selected, temperature, probe)
