"""The same steering for transformers' `model.generate()`, without vLLM.

    processor = EntropySteering({"fork_temperature": 1.2}, temperature=0.6, prompt_tokens=inputs.input_ids.shape[1])
    model.generate(**inputs, do_sample=True, temperature=0.6, logits_processor=[processor])

transformers applies it where vLLM does: before its own temperature, top-k, top-p and min-p. Repetition
penalties and other processors that transformers builds itself come before it, as on vLLM's V2 runner.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerdec.kernels import dispatch as kernel
from steerdec.kernels import reference
from steerdec.steering import encoding as rows
from steerdec.steering import params, scope


class EntropySteering(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped to mypy here
    """One call of `generate`: made anew for each, since it counts the generated tokens from the prompt's end.

    `outcomes` holds what was done, one entry a generated token, each with tensors of one entry a row.
    """

    def __init__(
        self,
        steering: params.Steering | dict[str, Any],
        *,
        temperature: float,
        prompt_tokens: int,
        seed: int | None = None,
        threshold_nats: float = params.PAPER_THRESHOLD_NATS,
    ) -> None:
        """
        Args:
            steering: what to do; see `steerdec.params`.
            temperature: the one given to `generate`; it divides the logits after this.
            prompt_tokens: length of the (padded) prompt.
            seed: of the placebo; row r of the batch uses seed + r.
            threshold_nats: where `steering` does not say.

        Raises:
            SteeringError: the steering is wrong or does not fit the rest.
        """
        self._steering = params.parse(steering)
        self._temperature, self._seed, self._threshold_nats = temperature, seed, threshold_nats
        self._prompt_tokens = prompt_tokens
        self._delimiters = (-1, -1)
        if self._steering.scope != "all":
            ids = self._steering.thinking_start_id, self._steering.thinking_end_id
            self._delimiters = scope.checked_delimiters(*ids)
        self._row(0)  # refuse now what would fail at the first token
        self._tables: tuple[Tensor, Tensor] | None = None
        self.outcomes: list[reference.Outcome] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steer [rows, vocab] scores of the token after [rows, length] `input_ids`."""
        n = scores.shape[0]
        if self._tables is None or self._tables[0].shape[0] != n:
            made = [self._row(r) for r in range(n)]
            self._tables = (
                torch.tensor([row.floats for row in made], dtype=torch.float32, device=scores.device),
                torch.tensor([row.ints for row in made], dtype=torch.int32, device=scores.device),
            )
        position = input_ids.shape[1] - self._prompt_tokens
        in_scope = None
        if self._steering.scope != "all":
            # Anew from all tokens: a row is another sequence when a beam search has reordered its beams.
            in_scope = scope.states_after(input_ids, *self._delimiters) == scope.CODES[self._steering.scope]
        logits = scores.float().contiguous()
        logits = logits.clone() if logits.data_ptr() == scores.data_ptr() else logits  # transformers may keep `scores`
        slots = torch.arange(n, dtype=torch.int32, device=scores.device)
        positions = torch.full((n,), position, dtype=torch.int32, device=scores.device)
        self.outcomes.append(kernel.steer_(logits, *self._tables, slots, positions, in_scope))
        return logits

    def _row(self, r: int) -> rows.Row:
        seed = None if self._seed is None else self._seed + r
        return rows.row_of(self._steering, self._temperature, seed, self._threshold_nats)
