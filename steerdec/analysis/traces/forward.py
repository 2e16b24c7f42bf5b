"""Compute what several lenses need in one pass over a trace: entropy, surprisal, and states before the last norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdec.analysis.traces.scoring import token_scores
from steerdec.common.errors import AnalysisError, InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forward:
    """The result of one pass. Entry t belongs to the distribution, or the state, that predicts chain token t."""

    entropy_nats: Floats  # [n]
    surprisal_nats: Floats  # [n]
    states: Tensor  # [n, hidden], of the last block, before the final norm


@torch.inference_mode()
def forward(model: Any, prompt: Sequence[int], chain: Sequence[int]) -> Forward:
    """Run teacher forcing over prompt and chain.

    Raises:
        AnalysisError: logits or states are not finite.
        InputError: the blocks of the model cannot be accessed.
    """
    ids = torch.tensor([[*prompt, *chain]], device=model.device)
    with _LastBlock(model) as seen:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(chain) + 1).logits[0, :-1]
    entropy, surprisal, _ = token_scores(logits, ids[0, len(prompt) :])
    states = seen.states[0, len(prompt) - 1 : -1]
    if not bool(torch.isfinite(entropy).all()):
        raise AnalysisError("the model's logits are not finite (NaN); no lens can be computed with it")
    if not bool(torch.isfinite(states).all()):
        raise AnalysisError("the model's hidden states are not finite; no lens can be computed with it")
    return Forward(entropy.double().cpu().numpy(), surprisal.double().cpu().numpy(), states)


@torch.inference_mode()
def last_state(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the state of the last token of a text fed alone, [hidden]. Raises InputError."""
    with _LastBlock(model) as seen:
        model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=1)
    return seen.states[0, -1]


class _LastBlock:
    """Context manager that stores the output of the last block."""

    states: Tensor

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        blocks = getattr(decoder, "layers", None)
        if blocks is None:
            raise InputError(f"{type(model).__name__} does not show its blocks as `layers`; HSIC cannot be computed")
        self._block = blocks[-1]

    def __enter__(self) -> _LastBlock:
        self._handle = self._block.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.states = output[0] if isinstance(output, tuple) else output
