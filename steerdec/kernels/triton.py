# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Steering on CUDA: three launches, no synchronization, no temporary larger than a few numbers per block.

1. `measure`, grid (rows, blocks): the largest logit of one block of a row, and sum e and sum e d over it.
2. `_decide`, grid (rows,): merges a row's blocks, decides and writes the outcome; runs the policy's step at rows that
   are selected, and measures at a probe temperature where one is set. It alone reads the tables, which vLLM keeps in
   host memory. On vLLM's V2 runner `triton_step.py` has it do the rest of a step as well.
3. `scale`, grid (rows, blocks): scales and removes what is below the floor, or returns at once where nothing changes.

Blocks depend on the vocabulary alone and are merged in one fixed tree without atomics, so a row's
outcome depends neither on its neighbors nor on timing: tensor-parallel ranks decide alike.
"""

from __future__ import annotations

from types import FunctionType
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerdec.kernels.reference import Outcome
from steerdec.kernels.triton_memory import remembered
from steerdec.policies import registry
from steerdec.softmax.triton import load_block, measure_at, merge, no_floor
from steerdec.steering import encoding, memory

BLOCK: Final = 4096  # logits per program
# Fusion is explicit because its default differs between versions of Triton.
OPTIONS: Final = {"num_warps": 8, "enable_fp_fusion": True}

# Python globals that a kernel reads must be marked as constant.
_FLOATS = tl.constexpr(encoding.FLOATS)
_THRESHOLD, _REQUEST_T = tl.constexpr(encoding.THRESHOLD), tl.constexpr(encoding.REQUEST_T)
_OTHER_T, _OTHER_FACTOR = tl.constexpr(encoding.OTHER_T), tl.constexpr(encoding.OTHER_FACTOR)
_PROBE_T, _APPLIED = tl.constexpr(encoding.PROBE_T), tl.constexpr(encoding.APPLIED)
_INTS = tl.constexpr(encoding.INTS)
_KIND, _SELECT = tl.constexpr(encoding.KIND), tl.constexpr(encoding.SELECT)
_KEY, _CUTOFF = tl.constexpr(encoding.KEY), tl.constexpr(encoding.CUTOFF)
_BY_ENTROPY, _BY_HASH = tl.constexpr(encoding.BY_ENTROPY), tl.constexpr(encoding.BY_HASH)
_ALWAYS, _BY_POSITION = tl.constexpr(encoding.ALWAYS), tl.constexpr(encoding.BY_POSITION)
_MEMORY, _RING_WORDS = tl.constexpr(encoding.MEMORY), tl.constexpr(memory.WORDS)
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def slot_of(slots_ptr, row, table_ptr, WIDTH: tl.constexpr, COLUMN: tl.constexpr):  # noqa: N803
    """Return the slot of a row's request, < 0 where the row is not steered."""
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if table_ptr is not None:
        steered = tl.load(table_ptr + slot * WIDTH + COLUMN, mask=slot >= 0, other=0)
        slot = tl.where(steered != 0, slot, -1)
    return slot


@triton.jit
def measure(
    logits_ptr,  # [rows, vocab] float32, rows `row_stride` apart
    row_stride,
    slots_ptr,  # [rows] integer
    table_ptr,  # [slots, WIDTH] int32 whose COLUMN says if a slot is steered; None: all are
    partials_ptr,  # [rows, 3, blocks] float32
    WIDTH: tl.constexpr,  # noqa: N803
    COLUMN: tl.constexpr,  # noqa: N803
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    if slot_of(slots_ptr, row, table_ptr, WIDTH, COLUMN) < 0:
        return
    block = tl.program_id(1)
    _, z = load_block(logits_ptr + row * row_stride, block, VOCAB, BLOCK)
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
def _no_policy(row_ptr, top, h, f_ptr, asked, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    return h * float("nan"), (h * 0.0 + 1.0).to(tl.float32), no_floor()


# `_choose` never runs with these.
_its_kind, _its_step, _other_steps = tl.constexpr(-1), _no_policy, _no_policy


def _choose(row_ptr, top, h, f_ptr, asked, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Call one policy's step, or the function that knows the others; `_or_else` puts the three names in its scope."""
    if asked == _its_kind:
        temperature, factor, floor = _its_step(row_ptr, top, h, f_ptr, VOCAB, BLOCK)
    else:
        temperature, factor, floor = _other_steps(row_ptr, top, h, f_ptr, asked, VOCAB, BLOCK)
    return temperature, factor, floor


def _or_else(kind, steered, others):
    """Return a Triton function that calls `steered` for one kind of policy and `others` for the rest.

    It is `_choose` with global names of its own: the compiler would take a closure, the interpreter does not.
    """
    names = {"_its_kind": tl.constexpr(kind), "_its_step": steered, "_other_steps": others}
    choose = FunctionType(_choose.__code__, globals() | names, _choose.__name__)
    choose.__annotations__, choose.__module__ = _choose.__annotations__, __name__
    choose.__qualname__ = f"_choose_{kind}"  # which the compiler uses to distinguish functions
    return triton.jit(choose)


# T' of a selected row, the factor that steers it there, and the floor.
_steered = _no_policy
for _kind, _step in reversed(registry.steps("triton")):
    _steered = _or_else(_kind, _step, _steered)


@triton.jit
def _hash(key, position):
    """Compute `reference.placebo_hash`."""
    x = key.to(tl.uint32, bitcast=True) + position.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return ((x ^ (x >> 16)) >> 8).to(tl.int32)


@triton.jit
def decide_row(
    row_ptr,  # the row's logits
    f_ptr,  # the request's rows of the tables
    i_ptr,
    partial_ptr,  # the row's
    position,
    in_scope,
    memory_ptr,  # [memories, RING, WORDS] int32, or None
    rows_before,  # of the row's request
    kept,  # whether the row's state is to be remembered
    RING: tl.constexpr,  # noqa: N803
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Return what is decided.

    H, whether the row is selected, T', the probed entropy, T / T', the floor, the largest logit's block, whether the
    guard has stopped steering, and the threshold.
    """
    top, keep_block, h = merge(partial_ptr, VOCAB, BLOCK)
    h = h.to(tl.float32).to(tl.float64)  # decide on the same float32 that is reported
    threshold = tl.load(f_ptr + _THRESHOLD).to(tl.float64)
    high = h > threshold
    stopped = h < -1.0  # False
    if memory_ptr is not None:
        mine = tl.load(i_ptr + _MEMORY).to(tl.int64)
        if mine >= 0:
            ring_ptr = memory_ptr + mine * RING * _RING_WORDS
            threshold, high, stopped = remembered(
                ring_ptr, f_ptr, partial_ptr, rows_before, position, h, kept, RING, VOCAB, BLOCK
            )
    measured = (h == h) & in_scope & (stopped == 0)
    select, cutoff = tl.load(i_ptr + _SELECT), tl.load(i_ptr + _CUTOFF)
    hashed = _hash(tl.load(i_ptr + _KEY), position)
    selected = measured & (
        (select == _ALWAYS)
        | ((select == _BY_ENTROPY) & high)
        | ((select == _BY_HASH) & (hashed < cutoff))
        | ((select == _BY_POSITION) & (position < cutoff))
    )
    t = tl.load(f_ptr + _REQUEST_T).to(tl.float64)
    temperature = t
    factor = (t / t).to(tl.float32)
    floor = no_floor()
    if selected:
        temperature, factor, floor = _steered(row_ptr, top, h, f_ptr, tl.load(i_ptr + _KIND), VOCAB, BLOCK)
    elif measured:
        temperature = tl.load(f_ptr + _OTHER_T).to(tl.float64)
        factor = tl.load(f_ptr + _OTHER_FACTOR)
    probe_t = tl.load(f_ptr + _PROBE_T).to(tl.float64)
    at = tl.where(probe_t == _APPLIED, temperature, probe_t)
    probed = tl.where(at == 0.0, at, float("nan"))
    if (h == h) & (at > 0.0):
        applied_floor = tl.where(probe_t == _APPLIED, floor, no_floor())
        probed, _ = measure_at(row_ptr, top, at, applied_floor, VOCAB, BLOCK)
    probed = tl.where(h == h, probed, float("nan"))
    h, temperature, probed = h.to(tl.float32), temperature.to(tl.float32), probed.to(tl.float32)
    return h, selected, temperature, probed, factor, floor, keep_block, stopped, threshold.to(tl.float32)


@triton.jit
def _decide(
    logits_ptr,
    row_stride,
    floats_ptr,  # [slots, FLOATS] float32
    ints_ptr,  # [slots, INTS] int32
    slots_ptr,
    positions_ptr,  # [rows] int64
    in_scope_ptr,  # [rows] uint8, or None
    memory_ptr,  # [memories, RING, WORDS] int32, or None
    partials_ptr,
    entropy_ptr,  # [rows] float32, as are temperature, probe, factor and floor
    selected_ptr,  # [rows] uint8
    temperature_ptr,
    probe_ptr,
    factor_ptr,
    floor_ptr,
    keep_block_ptr,  # [rows] int32
    stopped_ptr,  # [rows] uint8, None without memory, as is the next
    threshold_ptr,  # [rows] float32
    RING: tl.constexpr,  # noqa: N803
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
        tl.store(floor_ptr + row, no_floor())
        if memory_ptr is not None:
            tl.store(stopped_ptr + row, 0)
            tl.store(threshold_ptr + row, float("nan"))
        return
    in_scope = slot >= 0
    if in_scope_ptr is not None:
        in_scope = tl.load(in_scope_ptr + row) != 0
    position = tl.load(positions_ptr + row)
    rows_before = row * 0
    if memory_ptr is not None:
        while tl.load(slots_ptr + row - rows_before - 1, mask=row > rows_before, other=-1).to(tl.int64) == slot:
            rows_before += 1
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    h, selected, temperature, probed, factor, floor, keep_block, stopped, threshold = decide_row(
        logits_ptr + row * row_stride,
        floats_ptr + slot * _FLOATS,
        ints_ptr + slot * _INTS,
        partials_ptr + row * 3 * blocks,
        position,
        in_scope,
        memory_ptr,
        rows_before,
        position >= 0,
        RING,
        VOCAB,
        BLOCK,
    )
    tl.store(entropy_ptr + row, h)
    tl.store(selected_ptr + row, selected.to(tl.uint8))
    tl.store(temperature_ptr + row, temperature)
    tl.store(probe_ptr + row, probed)
    tl.store(factor_ptr + row, factor)
    tl.store(floor_ptr + row, floor)
    tl.store(keep_block_ptr + row, keep_block)
    if memory_ptr is not None:
        tl.store(stopped_ptr + row, stopped.to(tl.uint8))
        tl.store(threshold_ptr + row, threshold)


@triton.jit
def scale(
    logits_ptr,
    row_stride,
    factor_ptr,
    floor_ptr,
    keep_block_ptr,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    factor, floor = tl.load(factor_ptr + row), tl.load(floor_ptr + row)
    every = floor == -float("inf")
    if every & (factor == 1.0):
        return
    block = tl.program_id(1)
    row_ptr = logits_ptr + row * row_stride
    column, z = load_block(row_ptr, block, VOCAB, BLOCK)
    if every & (factor == 0.0):  # greedy: the first largest logit alone is kept
        first = tl.min(tl.where(z == tl.max(z, 0), column, VOCAB), 0)
        z = tl.where((column == first) & (block == tl.load(keep_block_ptr + row)), z, -float("inf"))
    else:
        z = tl.where(z >= floor, z * factor, -float("inf"))
    tl.store(row_ptr + column, z, mask=column < VOCAB)


def steer_(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    slots: Tensor,
    positions: Tensor,
    in_scope: Tensor | None = None,
    memory: Tensor | None = None,
) -> Outcome:
    """Do `reference.steer_` for float32 logits whose rows are contiguous; see `dispatch.steer_`."""
    n, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    entropy_nats, temperature, probe, factor, floor = (logits.new_empty(n) for _ in range(5))
    selected = logits.new_empty(n, dtype=torch.bool)
    keep_block = logits.new_empty(n, dtype=torch.int32)
    partials = logits.new_empty(n, 3, blocks)
    stopped = threshold = None
    if memory is not None:
        stopped, threshold = logits.new_empty(n, dtype=torch.bool), logits.new_empty(n)
    outcome = Outcome(entropy_nats, selected, temperature, probe, stopped, threshold)
    if n == 0:
        return outcome
    floats, ints = floats.contiguous(), ints.contiguous()
    slots, positions = slots.to(torch.int32).contiguous(), positions.to(torch.int64).contiguous()
    in_scope = None if in_scope is None else in_scope.contiguous().view(torch.uint8)
    stride = logits.stride(0)
    options = {"VOCAB": vocab, "BLOCK": BLOCK, **OPTIONS}
    with torch.cuda.device_of(logits):
        measure[(n, blocks)](logits, stride, slots, None, partials, WIDTH=1, COLUMN=0, **options)
        _decide[(n,)](
            *(logits, stride, floats, ints, slots, positions, in_scope, memory, partials),
            *(entropy_nats, selected.view(torch.uint8), temperature, probe, factor, floor, keep_block),
            *(None if stopped is None else stopped.view(torch.uint8), threshold),
            **{"RING": 1 if memory is None else memory.shape[1], **options},
        )
        scale[(n, blocks)](logits, stride, factor, floor, keep_block, **options)
    return outcome
