"""vLLM's V2 model runner: requests live in slots, and a logits row may belong to any of them.

A step may have several rows of one request (drafts), rows of unfinished prefills, and several calls of `apply`, each
with whole requests. Everything is decided on the device; the host only knows which slots are steered, so that nothing
is launched without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

from steerdec.kernels import dispatch, slots
from steerdec.kernels.slots import Layout, Slots
from steerdec.steering import encoding, scope
from steerdec.telemetry.lanes import WORDS
from steerdec.vllm_plugin.memories import Identity, Memories
from steerdec.vllm_plugin.recorder import Recorder
from steerdec.vllm_plugin.request import SteeredSequence, unpacked

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

    from steerdec.vllm_plugin.settings import Settings


# Of the tensors in a step's Layout, as vLLM makes them: what the kernels are compiled for at the start.
LAYOUT_DTYPES: Final = (torch.int64, torch.int64, torch.int32, torch.int32)


class SlotRows:
    """Per-slot state: written on the host as requests come, copied to the device where any of it has changed."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder | None,
        vllm_config: VllmConfig,
        states: LogitsProcRequestState,
    ) -> None:
        n, device = states.max_num_reqs, states.device
        self._settings, self._states = settings, states
        self._steered = np.zeros(n, bool)
        self._remembers = np.zeros(n, bool)
        self._identities: list[Identity | None] = [None] * n
        speculative = vllm_config.speculative_config
        drafts = speculative.num_speculative_tokens if speculative is not None else 0
        self._memories = Memories(device, drafts)
        # Both tables in one block of words, for one copy. In host memory, as vLLM keeps such tables, each program of a
        # kernel would read them over PCIe: 9 to 17 microseconds of a step (docs/performance.md).
        self._staged = UvaBackedTensor(n * (encoding.FLOATS + slots.SLOT_INTS), dtype=torch.int32)
        self._words = torch.zeros(len(self._staged.np), dtype=torch.int32, device=device)
        floats, ints = np.split(self._staged.np, [n * encoding.FLOATS])
        self._floats = floats.view(np.float32).reshape(n, encoding.FLOATS)
        self._ints = ints.reshape(n, slots.SLOT_INTS)
        there = self._words.tensor_split([n * encoding.FLOATS])
        self._device_floats = there[0].view(torch.float32).view(n, encoding.FLOATS)
        self._device_ints = there[1].view(n, slots.SLOT_INTS)
        self._changed = False
        self._history = torch.zeros(n, dtype=torch.int64, device=device)
        # Without telemetry there is one lane, the last, which is never written.
        self._lanes = torch.zeros(1, 1, WORDS, dtype=torch.int32, device=device)
        if recorder is not None:
            self._lanes = recorder.words
        self._step: _Step = _TorchStep(recorder)
        if dispatch.BACKEND_OF_DEVICE[device.type] == "triton":
            from steerdec.kernels.triton_step import Step

            self._step = Step(n * (1 + drafts))
        self._warm_up(states.vocab_size, device)

    def add(self, slot: int, sampling_params: SamplingParams) -> bool:
        """Let a request enter `slot` and forget its last occupant. Return whether it is steered."""
        sequence = unpacked(sampling_params, self._settings)
        if sequence is None and not self._steered[slot]:
            return False
        self._steered[slot] = sequence is not None
        memory = self._memory_of(slot, sequence)
        ints = self._ints[slot]
        ints[slots.STEERED] = sequence is not None
        ints[slots.OCCUPANT] = (ints[slots.OCCUPANT] + 1) % slots.OCCUPANTS
        if sequence is not None:
            self._floats[slot] = sequence.floats
            ints[: encoding.INTS] = sequence.ints
            ints[encoding.MEMORY] = memory
            ints[slots.SCOPE] = sequence.scope
            ints[slots.START_ID], ints[slots.END_ID] = sequence.delimiters
            ints[slots.LANE], ints[slots.GENERATION] = sequence.lane or (-1, -1)
        self._changed = True
        return sequence is not None

    def _memory_of(self, slot: int, sequence: SteeredSequence | None) -> int:
        """Return the memory of the slot's new request, NO_MEMORY if it needs none, and let go of that of the last."""
        last, identity = self._identities[slot], None if sequence is None else sequence.identity
        if last is not None:
            self._memories.leave(last)
        self._identities[slot], self._remembers[slot] = identity, identity is not None
        if identity is None:
            return encoding.NO_MEMORY
        generated_tokens = self._states.prefill_len.np[slot] - self._states.prompt_len.np[slot]
        return self._memories.enter(identity, int(generated_tokens))

    def flush(self) -> None:
        """Copy the changes of `add` to the device; called once a step, before the forward pass."""
        if self._changed:
            self._words.copy_(self._staged.copy_to_uva(), non_blocking=True)
            self._changed = False

    def apply(self, logits: Tensor, ctx: LogitsContext) -> None:
        """Steer the rows of steered slots in place; [rows, vocab] float32, rows laid out as in `ctx`."""
        present = ctx.idx_mapping_np[ctx.idx_mapping_np >= 0]
        if self._steered[present].any():
            remembers = bool(self._remembers[present].any())
            layout = Layout(ctx.expanded_idx_mapping, ctx.pos, ctx.expanded_local_pos, ctx.input_ids)
            self._step(logits, self._slots(remembers), layout)

    def _slots(self, remembers: bool) -> Slots:
        states = self._states
        return Slots(
            floats=self._device_floats,
            ints=self._device_ints,
            prompt_len=states.prompt_len.gpu,
            prefill_len=states.prefill_len.gpu,
            token_ids=states.all_token_ids.gpu,
            history=self._history,
            lanes=self._lanes,
            memory=self._memories.words if remembers else None,
        )

    def _warm_up(self, vocab: int, device: torch.device) -> None:
        """Compile everything that a step needs, so that no request waits for it (seconds)."""
        if isinstance(self._step, _TorchStep):
            dispatch.warm_up(vocab, device, self._memories.ring)
            return
        layout = Layout(*(torch.full((2,), -1, dtype=dtype, device=device) for dtype in LAYOUT_DTYPES))
        for window in dispatch.windows(vocab, device):
            for remembers in (False, True):
                self._step(window, self._slots(remembers), layout)


class _Step(Protocol):
    def __call__(self, logits: Tensor, slots: Slots, layout: Layout, /) -> None: ...


class _TorchStep:
    """What `kernels.triton_step` does, in torch around the kernel for rows: for devices without Triton."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder

    def __call__(self, logits: Tensor, state: Slots, layout: Layout, /) -> None:
        slot = layout.slots.clamp(min=0).long()
        ints = state.ints[slot]
        rows = torch.where((layout.slots >= 0) & (ints[:, slots.STEERED] != 0), slot, -1)
        position = layout.pos + 1 - state.prompt_len[slot]
        in_scope = scope.rows_in_scope(
            state.ints[:, slots.SCOPE],
            state.ints[:, slots.START_ID : slots.END_ID + 1],
            state.token_ids,
            rows,
            layout.pos,
            layout.local_pos,
            layout.input_ids,
        )
        # A prefill in parts samples a token that is discarded: it must be neither recorded nor remembered.
        kept = (rows >= 0) & (layout.pos + 1 >= state.prefill_len[slot])
        table, at = state.ints[:, : encoding.INTS], position
        if state.memory is not None:
            at = torch.where(kept, position, -1)
        outcome = dispatch.steer_(logits, state.floats, table, rows, at, in_scope, state.memory)
        if self._recorder is not None:
            lane = torch.where(kept, ints[:, slots.LANE], -1)
            self._recorder.write(lane, ints[:, slots.GENERATION], position, outcome)
