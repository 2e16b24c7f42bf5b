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

from steerdec.kernels import dispatch, reference
from steerdec.policies import registry
from steerdec.steering import admission, encoding, params, scope


class EntropySteering(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Steers one call of `generate`; make a new one for each, since it counts generated tokens from the prompt's end.

    `outcomes` has one entry per generated token, with tensors of one entry per row.
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
        """Check the steering and encode it.

        Args:
            steering: the object that a request's `steering` field holds.
            temperature: as given to `generate`, which divides the logits by it afterwards.
            prompt_tokens: length of the (padded) prompt.
            seed: of the placebo; row r of the batch uses seed + r.
            threshold_nats: the default if `steering` has no threshold.

        Raises:
            SteeringError: the steering is invalid or cannot be applied to such a request.
        """
        parsed = registry.parse(steering)
        self._seed, self._prompt_tokens = seed, prompt_tokens
        admission.admit(parsed, admission.Sampling(temperature, seed), admission.Engine())
        self._request = encoding.encode(parsed, temperature, threshold_nats)
        self._tables: tuple[Tensor, Tensor] | None = None
        self.outcomes: list[reference.Outcome] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steer [rows, vocab] scores of the token after [rows, length] `input_ids`."""
        n = scores.shape[0]
        if self._tables is None or self._tables[0].shape[0] != n:
            seeds = [None if self._seed is None else self._seed + r for r in range(n)]
            self._tables = (
                torch.tensor([self._request.floats] * n, dtype=torch.float32, device=scores.device),
                torch.tensor([self._request.ints(s) for s in seeds], dtype=torch.int32, device=scores.device),
            )
        position = input_ids.shape[1] - self._prompt_tokens
        in_scope = None
        if self._request.scope != encoding.EVERYWHERE:
            # From all tokens each time: after a beam search has reordered its beams, a row holds another sequence.
            in_scope = scope.states_after(input_ids, *self._request.delimiters) == self._request.scope
        logits = scores.float().contiguous()
        logits = logits.clone() if logits.data_ptr() == scores.data_ptr() else logits  # transformers may keep `scores`
        slots = torch.arange(n, dtype=torch.int32, device=scores.device)
        positions = torch.full((n,), position, dtype=torch.int32, device=scores.device)
        self.outcomes.append(dispatch.steer_(logits, *self._tables, slots, positions, in_scope))
        return logits
