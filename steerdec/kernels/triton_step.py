# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""A whole step of vLLM's V2 runner on CUDA: three launches, and no other operator.

In addition to what `triton.py` does, `_decide_step` finds each row's request and position, follows the thinking block,
and writes the telemetry record, so that no part of a step is left to torch. `steering.scope.rows_in_scope` and
`vllm_plugin.recorder.Recorder.write` do the same in torch; tests compare the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerdec.kernels.slots import (
    END_ID,
    GENERATION,
    LANE,
    OCCUPANT,
    SCOPE,
    SLOT_INTS,
    START_ID,
    STEERED,
    Layout,
    Slots,
)
from steerdec.kernels.triton import BLOCK, OPTIONS, decide_row, measure, scale, slot_of
from steerdec.softmax.triton import no_floor
from steerdec.steering import encoding
from steerdec.telemetry import lanes

_FLOATS, _SLOT_INTS = tl.constexpr(encoding.FLOATS), tl.constexpr(SLOT_INTS)
_STEERED, _SCOPE, _START_ID, _END_ID = (tl.constexpr(c) for c in (STEERED, SCOPE, START_ID, END_ID))
_LANE, _GENERATION, _OCCUPANT = (tl.constexpr(c) for c in (LANE, GENERATION, OCCUPANT))
_EVERYWHERE = tl.constexpr(encoding.EVERYWHERE)
_THINKING, _ANSWER = tl.constexpr(encoding.THINKING), tl.constexpr(encoding.ANSWER)
_FLAG_BITS, _FORK, _GUARDED = (tl.constexpr(c) for c in (lanes.FLAG_BITS, lanes.FORK, lanes.STOPPED))
_SCANNED = tl.constexpr(1024)  # tokens of a history read at once, from its end


@triton.jit
def _code(tokens, i_ptr):
    start_id, end_id = tl.load(i_ptr + _START_ID), tl.load(i_ptr + _END_ID)
    return tl.where(tokens == start_id, _THINKING, tl.where(tokens == end_id, _ANSWER, 0))


@triton.jit
def _state_before(token_ids_ptr, history_ptr, i_ptr, first_fed, local_pos):
    """Return the state after the tokens before position `first_fed`, and remember it for the next step.

    One int64 holds the slot's occupant, how far its tokens were followed, and the state there: a request's rows, which
    run at the same time, find the old word or the new one, and both lead to the same state.
    """
    occupant = tl.load(i_ptr + _OCCUPANT).to(tl.int64)
    word = tl.load(history_ptr)
    known = (word >> 34) == occupant
    followed = tl.where(known, (word >> 2) & 0xFFFFFFFF, 0)
    state = tl.where(known, word & 3, 0).to(tl.int32)
    end = first_fed
    found = state * 0
    while (end > followed) & (found == 0):
        index = end - _SCANNED + tl.arange(0, _SCANNED)
        inside = index >= followed
        code = _code(tl.load(token_ids_ptr + index, mask=inside, other=-1), i_ptr)
        last = tl.max(tl.where(inside & (code > 0), tl.arange(0, _SCANNED) * 4 + code, 0), 0)
        found = last & 3
        end -= _SCANNED
    state = tl.where(found > 0, found, state)
    if local_pos == 0:
        tl.store(history_ptr, (occupant << 34) | (tl.maximum(followed, first_fed) << 2) | state.to(tl.int64))
    return state


@triton.jit
def _state_at(input_ids_ptr, i_ptr, state, row, local_pos):
    """Return the state after the tokens fed at a request's rows up to `row`, which are adjacent and in order."""
    at = row
    found = state * 0
    while (at >= row - local_pos) & (found == 0):
        found = _code(tl.load(input_ids_ptr + at), i_ptr)
        at -= 1
    return tl.where(found > 0, found, state)


@triton.jit
def _decide_step(
    logits_ptr,  # [rows, vocab] float32, rows `row_stride` apart
    row_stride,
    floats_ptr,
    ints_ptr,
    prompt_len_ptr,
    prefill_len_ptr,
    token_ids_ptr,
    token_stride,
    history_ptr,
    memory_ptr,  # [memories, RING, WORDS] int32, None if no row's request has one
    lanes_ptr,
    lanes,  # that may be written
    capacity_tokens,
    slots_ptr,
    pos_ptr,
    local_pos_ptr,
    input_ids_ptr,
    partials_ptr,  # [rows, 3, blocks] float32
    factor_ptr,  # [rows] float32
    floor_ptr,  # [rows] float32
    keep_block_ptr,  # [rows] int32
    RING: tl.constexpr,  # noqa: N803
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    slot = slot_of(slots_ptr, row, ints_ptr, _SLOT_INTS, _STEERED)
    if slot < 0:
        tl.store(factor_ptr + row, 1.0)
        tl.store(floor_ptr + row, no_floor())
        return
    i_ptr = ints_ptr + slot * _SLOT_INTS
    pos = tl.load(pos_ptr + row).to(tl.int64)
    position = pos + 1 - tl.load(prompt_len_ptr + slot)
    scope = tl.load(i_ptr + _SCOPE)
    in_scope = scope == _EVERYWHERE
    if scope != _EVERYWHERE:
        local_pos = tl.load(local_pos_ptr + row).to(tl.int64)
        state = _state_before(
            token_ids_ptr + slot * token_stride, history_ptr + slot, i_ptr, pos - local_pos, local_pos
        )
        in_scope = _state_at(input_ids_ptr, i_ptr, state, row, local_pos) == scope
    blocks: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    # A prefill in parts samples a token that is discarded: it must not be recorded.
    whole = pos + 1 >= tl.load(prefill_len_ptr + slot)
    rows_before = tl.load(local_pos_ptr + row).to(tl.int64) if memory_ptr is not None else 0
    h, selected, temperature, probed, factor, floor, keep_block, stopped, _ = decide_row(
        logits_ptr + row * row_stride,
        floats_ptr + slot * _FLOATS,
        i_ptr,
        partials_ptr + row * 3 * blocks,
        position,
        in_scope,
        memory_ptr,
        rows_before,
        whole & (position >= 0),
        RING,
        VOCAB,
        BLOCK,
    )
    tl.store(factor_ptr + row, factor)
    tl.store(floor_ptr + row, floor)
    tl.store(keep_block_ptr + row, keep_block)
    lane = tl.load(i_ptr + _LANE).to(tl.int64)
    if whole & (lane >= 0) & (lane < lanes) & (position >= 0) & (position < capacity_tokens):
        tag = (tl.load(i_ptr + _GENERATION) << _FLAG_BITS) | selected.to(tl.int32) * _FORK
        tag |= stopped.to(tl.int32) * _GUARDED
        word = tl.arange(0, 4)
        record = tl.where(word == 2, tag, probed.to(tl.int32, bitcast=True))
        record = tl.where(word == 1, temperature.to(tl.int32, bitcast=True), record)
        record = tl.where(word == 0, h.to(tl.int32, bitcast=True), record)
        tl.store(lanes_ptr + (lane * capacity_tokens + position) * 4 + word, record)


class Step:
    """Steers the logits of a step, with scratch memory that is kept from step to step."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._partials: Tensor | None = None

    def __call__(self, logits: Tensor, slots: Slots, layout: Layout) -> None:
        """Steer float32 `logits` [rows, vocab], whose rows are contiguous, in place; write the records."""
        n, vocab = logits.shape
        blocks = triton.cdiv(vocab, BLOCK)
        if n == 0:
            return
        if self._partials is None or self._partials.shape[2] != blocks or len(self._partials) < n:
            rows = max(n, self._max_rows)
            self._partials = logits.new_empty(rows, 3, blocks)
            self._factor, self._floor = logits.new_empty(rows), logits.new_empty(rows)
            self._keep_block = logits.new_empty(rows, dtype=torch.int32)
        stride, options = logits.stride(0), {"VOCAB": vocab, "BLOCK": BLOCK, **OPTIONS}
        lane_count, capacity_tokens, _ = slots.lanes.shape
        memory = slots.memory
        with torch.cuda.device_of(logits):
            measure[(n, blocks)](
                *(logits, stride, layout.slots, slots.ints, self._partials),
                **{"WIDTH": SLOT_INTS, "COLUMN": STEERED, **options},
            )
            _decide_step[(n,)](
                *(logits, stride, slots.floats, slots.ints, slots.prompt_len, slots.prefill_len),
                *(slots.token_ids, slots.token_ids.stride(0), slots.history, memory),
                *(slots.lanes, lane_count - 1, capacity_tokens),
                *(layout.slots, layout.pos, layout.local_pos, layout.input_ids),
                *(self._partials, self._factor, self._floor, self._keep_block),
                **{"RING": 1 if memory is None else memory.shape[1], **options},
            )
            scale[(n, blocks)](logits, stride, self._factor, self._floor, self._keep_block, **options)
