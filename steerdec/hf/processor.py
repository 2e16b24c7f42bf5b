"""The logits processor for transformers.

transformers applies it where vLLM does: before its own temperature, top-k, top-p and min-p. Repetition penalties and
other processors that transformers builds itself come before it, as on vLLM's V2 runner.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerdec.common.errors import InvalidInputError
from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.steering import admission, encoding, memory, params, scope
from steerdec.steering.memory import Rule

_RING: Final = 1024  # states of a row with a memory; more than transformers ever drafts at once


class EntropySteering(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Steers one call of `generate` that samples one token per row and step; make a new one for each call.

    `outcomes` has one entry per step, with tensors of one entry per row. A row that has ended goes on having entries
    until the last row ends; `steerdec.hf.generate` knows where each row ends.
    """

    supports_continuous_batching = False  # which hands over no histories, and rows in any order

    def __init__(
        self,
        steering: params.Steering | dict[str, Any],
        *,
        temperature: float,
        prompt_tokens: int | None = None,
        seed: int | None = None,
        threshold_nats: float = params.PAPER_THRESHOLD_NATS,
    ) -> None:
        """Check the steering and encode it.

        Args:
            steering: the object that a request's `steering` field holds.
            temperature: as given to `generate`, which divides the logits by it afterwards.
            prompt_tokens: length of the (padded) prompt, to have it checked; None takes that of the first step.
            seed: of the placebo; row r of the batch uses seed + r.
            threshold_nats: the default if `steering` has no threshold.

        Raises:
            SteeringError: the steering is invalid or cannot be applied to such a request.
        """
        parsed = registry.parse(steering)
        self._seed = seed
        admission.admit(parsed, admission.Sampling(temperature, seed), admission.Engine())
        self._request = encoding.encode(parsed, temperature, threshold_nats)
        self._scope = parsed.scope
        self._tables: tuple[Tensor, Tensor] | None = None
        self._memory: Tensor | None = None
        self._newest: Tensor | None = None  # input_ids of the last step
        self.threshold_nats = self._request.floats[encoding.THRESHOLD]
        self.rule = Rule.of(self._request.floats) if self._request.remembers else None
        self.prompt_tokens = prompt_tokens
        self.outcomes: list[reference.Outcome] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steer [rows, vocab] scores of the token after [rows, length] `input_ids`.

        Raises:
            InvalidInputError: the prompt is not as long as was said, or this step is not the next one of the same rows.
            SteeringError: the scope cannot be known, because the prompt has no token ids.
        """
        n = scores.shape[0]
        if self._tables is None or self._tables[0].shape[0] != n or self._tables[0].device != scores.device:
            seeds = [None if self._seed is None else self._seed + r for r in range(n)]
            self._tables = (
                torch.tensor([self._request.floats] * n, dtype=torch.float32, device=scores.device),
                torch.tensor([self._request.ints(s) for s in seeds], dtype=torch.int32, device=scores.device),
            )
            if self._request.remembers:
                self._tables[1][:, encoding.MEMORY] = torch.arange(n)
                self._memory = torch.zeros(n, _RING, memory.WORDS, dtype=torch.int32, device=scores.device)
        position = self._position(input_ids)
        in_scope = None
        if self._request.scope != encoding.EVERYWHERE:
            in_scope = scope.states_after(input_ids, *self._request.delimiters) == self._request.scope
        logits = scores.float().contiguous()
        logits = logits.clone() if logits.data_ptr() == scores.data_ptr() else logits  # transformers may keep `scores`
        slots = torch.arange(n, dtype=torch.int32, device=scores.device)
        positions = torch.full((n,), position, dtype=torch.int32, device=scores.device)
        self.outcomes.append(dispatch.steer_(logits, *self._tables, slots, positions, in_scope, self._memory))
        return logits

    def _position(self, input_ids: Tensor) -> int:
        """Return the index of the token to be sampled among those generated; it has no outcome yet."""
        length = input_ids.shape[1]
        if length == 0 and self._request.scope != encoding.EVERYWHERE:
            raise params.SteeringError("scope", f'"{self._scope}" needs the token ids of the prompt, not inputs_embeds')
        if self.prompt_tokens is None:
            self.prompt_tokens = length
        position = length - self.prompt_tokens
        if position != 0 and not self.outcomes:
            raise InvalidInputError(
                f"prompt_tokens: is {self.prompt_tokens}, but generate begins with {length} tokens per row"
            )
        self._follow(position, input_ids)
        return position

    def _follow(self, position: int, input_ids: Tensor) -> None:
        """Refuse a step that does not continue the rows of the one before."""
        newest, self._newest = self._newest, input_ids
        if position != len(self.outcomes) or (newest is not None and not torch.equal(input_ids[:, :-1], newest)):
            raise InvalidInputError(
                "EntropySteering: this step does not continue the one before; it goes with one call of generate, "
                "without beams, and without drafts (assistant_model, prompt_lookup_num_tokens)"
            )


class DraftSteering(EntropySteering):
    """Steers assisted generation of one row, in which a step may go back to a token whose draft was rejected.

    The draft model's steps come here too. The model's own step for a token always comes after them, and is what counts.
    """

    def _follow(self, position: int, input_ids: Tensor) -> None:
        del self.outcomes[position:]
        assert position == len(self.outcomes), "a step leaves out a token"
