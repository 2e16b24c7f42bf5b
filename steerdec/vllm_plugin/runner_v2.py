"""vLLM's V2 model runner: requests live in slots, and a logits row belongs to any of them.

A step may bring several rows of one request (drafts), rows of unfinished prefills, and several
calls of `apply`, each with whole requests. Everything is decided on the device; the host only
knows which slots are steered, to launch nothing where none is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

from steerdec.kernels import dispatch
from steerdec.steering import encoding, scope
from steerdec.vllm_plugin.request import unpacked

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

    from steerdec.vllm_plugin.recorder import Recorder
    from steerdec.vllm_plugin.settings import Settings


class SlotRows:
    """Per-slot state on the host (`.np`) with its copy on the device (`.gpu`, new at every flush)."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder | None,
        vllm_config: VllmConfig,
        states: LogitsProcRequestState,
    ) -> None:
        n = states.max_num_reqs
        self._settings, self._recorder, self._states = settings, recorder, states
        self._steered = np.zeros(n, bool)
        self._scoped = np.zeros(n, bool)
        self._has_lane = np.zeros(n, bool)
        self._floats = UvaBackedTensor((n, encoding.FLOATS), dtype=torch.float32)
        self._ints = UvaBackedTensor((n, encoding.INTS), dtype=torch.int32)
        self._on = UvaBackedTensor(n, dtype=torch.int32)  # 1 for steered slots
        self._lanes = UvaBackedTensor((n, 2), dtype=torch.int32)  # lane, generation; -1 without
        self._scopes = UvaBackedTensor(n, dtype=torch.int32)
        self._delimiters = UvaBackedTensor((n, 2), dtype=torch.int32)
        self._changed = False
        self._to_follow: list[int] = []  # scoped slots whose history is not read yet
        speculative = vllm_config.speculative_config
        drafts = speculative.num_speculative_tokens if speculative is not None else 0
        self._tracker = scope.DeviceTracker(n, 1 + drafts, states.all_token_ids.gpu)

    def add(self, slot: int, sampling_params: SamplingParams) -> bool:
        """A request enters `slot`, whose last occupant is forgotten. Returns whether it is steered."""
        sequence = unpacked(sampling_params, self._settings)
        self._steered[slot] = sequence is not None
        self._scoped[slot] = sequence is not None and sequence.scope != encoding.EVERYWHERE
        self._has_lane[slot] = sequence is not None and sequence.lane is not None
        self._on.np[slot] = sequence is not None
        self._lanes.np[slot] = -1
        if sequence is not None:
            self._floats.np[slot] = sequence.floats
            self._ints.np[slot] = sequence.ints
            self._scopes.np[slot] = sequence.scope
            self._delimiters.np[slot] = sequence.delimiters
            if sequence.lane is not None:
                self._lanes.np[slot] = sequence.lane
            if sequence.scope != encoding.EVERYWHERE:
                self._to_follow.append(slot)
        self._changed = True
        return sequence is not None

    def flush(self) -> None:
        """Bring what `add` changed to the device; called once a step, before the forward pass."""
        if not self._changed:
            return
        for tensor in (self._floats, self._ints, self._on, self._lanes, self._scopes, self._delimiters):
            tensor.copy_to_uva()
        for slot in self._to_follow:
            if self._scoped[slot]:
                start_id, end_id = self._delimiters.np[slot].tolist()
                self._tracker.enter(slot, start_id, end_id, int(self._states.prefill_len.np[slot]))
        self._to_follow.clear()
        self._changed = False

    def apply(self, logits: Tensor, ctx: LogitsContext) -> None:
        """Steer the rows of steered slots in place; [rows, vocab], rows as `ctx` lays them out."""
        present = ctx.idx_mapping_np
        present = present[present >= 0]
        if not self._steered[present].any():
            return
        slot = ctx.expanded_idx_mapping.clamp(min=0)
        slots = torch.where((ctx.expanded_idx_mapping >= 0) & (self._on.gpu[slot] != 0), slot, -1)
        position = ctx.pos + 1 - self._states.prompt_len.gpu[slot]
        in_scope = None
        if self._scoped[present].any():
            in_scope = self._tracker.rows_in_scope(
                self._scopes.gpu, self._delimiters.gpu, slots, ctx.pos, ctx.expanded_local_pos, ctx.input_ids
            )
        outcome = dispatch.steer_(logits, self._floats.gpu, self._ints.gpu, slots, position, in_scope)
        if self._recorder is not None and self._has_lane[present].any():
            # A prefill in parts samples a token that is thrown away: it must not be recorded.
            kept = (slots >= 0) & (ctx.pos + 1 >= self._states.prefill_len.gpu[slot])
            lane, generation = self._lanes.gpu[slot, 0], self._lanes.gpu[slot, 1]
            self._recorder.write(torch.where(kept, lane, -1), generation, position, outcome)
