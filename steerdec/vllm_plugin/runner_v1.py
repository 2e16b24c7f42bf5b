"""vLLM's V1 model runner: logits row r belongs to the request at index r of the batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from steerdec.kernels import dispatch
from steerdec.steering import encoding, scope
from steerdec.vllm_plugin.memories import Memories
from steerdec.vllm_plugin.request import SteeredSequence, has_penalties, unpacked

if TYPE_CHECKING:
    from vllm import SamplingParams

    from steerdec.vllm_plugin.recorder import Recorder
    from steerdec.vllm_plugin.settings import Settings

logger = logging.getLogger("vllm.steerdec")  # a child of vLLM's own logger, so that it is printed


@dataclass(frozen=True)
class _Live:
    """A steered sequence in the batch."""

    sequence: SteeredSequence
    output_ids: list[int]  # vLLM's own list, which grows with the tokens
    tracker: scope.Tracker | None  # None if the scope is everywhere
    memory: int  # NO_MEMORY if it needs none


@dataclass(frozen=True)
class _Tables:
    """The batch as tensors on the device, rebuilt whenever its composition changes."""

    live: list[tuple[int, _Live]]  # (row, request), rows ascending
    floats: Tensor  # [live, encoding.FLOATS]
    ints: Tensor  # [live, encoding.INTS]
    slots: Tensor  # [batch] index into live, -1 for rows that are not steered
    lanes: Tensor | None  # [batch, 2] lane and generation, -1 without; None if no row has one
    memory: Tensor | None  # all memories; None if no row has one


class BatchRows:
    """The steered sequences of the batch, kept in sync with vLLM's batch updates."""

    def __init__(self, settings: Settings, recorder: Recorder | None, device: torch.device) -> None:
        self._settings, self._recorder, self._device = settings, recorder, device
        self._live: dict[int, _Live] = {}
        self._tables: _Tables | None = None
        self._memories = Memories(device, draft_tokens=0)

    @property
    def ring(self) -> int:
        """Return how many states are kept of a request with a memory."""
        return self._memories.ring

    def update(self, batch: BatchUpdate) -> None:
        """Apply one change of the batch; the order (removed, added, moved) is vLLM's."""
        for index in batch.removed:
            self._drop(index)
        for index, sampling_params, prompt_ids, output_ids in batch.added:
            self._drop(index)
            live = self._new(sampling_params, prompt_ids or [], output_ids)
            if live is not None:
                self._live[index] = live
        for a, b, direction in batch.moved:
            at_a, at_b = self._live.pop(a, None), self._live.pop(b, None)
            if at_a is not None:
                self._live[b] = at_a
            if at_b is not None and direction == MoveDirectionality.SWAP:
                self._live[a] = at_b
        self._tables = None

    def _drop(self, index: int) -> None:
        live = self._live.pop(index, None)
        if live is not None and live.sequence.identity is not None:
            self._memories.leave(live.sequence.identity)

    def _new(self, sampling_params: SamplingParams, prompt_ids: list[int], output_ids: list[int]) -> _Live | None:
        sequence = unpacked(sampling_params, self._settings)
        if sequence is None:
            return None
        if has_penalties(sampling_params):
            # Admission refuses it if the request has the steering itself; only a default gets this far.
            logger.error("A request with penalties is left unsteered: the V1 model runner applies them after steering.")
            return None
        tracker = None
        if sequence.scope != encoding.EVERYWHERE:
            tracker = scope.Tracker(sequence.scope, *sequence.delimiters, prompt_ids)
        memory = encoding.NO_MEMORY
        if sequence.identity is not None:
            memory = self._memories.enter(sequence.identity, len(output_ids))
        return _Live(sequence, output_ids, tracker, memory)

    def apply(self, logits: Tensor) -> None:
        """Steer the batch's logits [batch, vocab] in place."""
        if not self._live:
            return
        n = logits.shape[0]
        if self._tables is None or len(self._tables.slots) != n:
            self._tables = self._built(n)
        tables = self._tables
        if not tables.live:
            return
        positions, in_scope = [0] * n, None
        for row, live in tables.live:
            positions[row] = len(live.output_ids)
            if live.tracker is not None:
                in_scope = in_scope or [True] * n
                in_scope[row] = live.tracker.contains_next(live.output_ids)
        at = torch.tensor(positions).to(self._device, non_blocking=True)
        where = None if in_scope is None else torch.tensor(in_scope).to(self._device, non_blocking=True)
        outcome = dispatch.steer_(logits, tables.floats, tables.ints, tables.slots, at, where, tables.memory)
        if self._recorder is not None and tables.lanes is not None:
            self._recorder.write(tables.lanes[:, 0], tables.lanes[:, 1], at, outcome)

    def _built(self, n: int) -> _Tables:
        live = [(row, self._live[row]) for row in sorted(self._live) if row < n]
        slots, lanes = [-1] * n, [(-1, -1)] * n
        for i, (row, one) in enumerate(live):
            slots[row] = i
            lanes[row] = one.sequence.lane or (-1, -1)
        return _Tables(
            live,
            torch.tensor([one.sequence.floats for _, one in live], dtype=torch.float32, device=self._device),
            torch.tensor([_ints(one) for _, one in live], dtype=torch.int32, device=self._device),
            torch.tensor(slots, dtype=torch.int32, device=self._device),
            torch.tensor(lanes, device=self._device) if any(one.sequence.lane for _, one in live) else None,
            self._memories.words if any(one.sequence.identity for _, one in live) else None,
        )


def _ints(live: _Live) -> list[int]:
    ints = list(live.sequence.ints)
    ints[encoding.MEMORY] = live.memory
    return ints
