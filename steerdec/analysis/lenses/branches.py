"""Score many continuations of one text in few passes, for the lenses that delete, force, or hide tokens.

A branch keeps the first tokens of a shared context and continues with its own. The context is run once. The branches
are packed into one sequence after it. Each attends only to what it keeps and to itself (a tree mask), at the positions
it would have alone. That is exact up to rounding if the model sees places only through `position_ids` and the mask.
`BranchScorer` compares one branch with a plain pass before it trusts a model, and runs every branch by itself if the
two differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdec.common.errors import AnalysisError

Floats = NDArray[np.float64]

TOKENS_PER_PASS: Final = 512
FEWEST_TOKENS_PER_PASS: Final = 64
TOLERANCE_NATS: Final = {torch.float64: 1e-6, torch.float32: 2e-3}  # packed compared with plain
TOLERANCE_HALF_NATS: Final = 0.3  # bfloat16 and float16: the rounding of their kernels depends on the shape


class BranchError(AnalysisError):
    """A model or a branch cannot be scored; one line."""


@dataclass(frozen=True)
class Branch:
    """`tokens` after the first `keep` tokens of the context, which do not see those of the span `hidden`.

    `hidden` = (begin, end) leaves the other tokens at their positions. To remove a token entirely, leave it out of
    `tokens`. The last `scored` tokens are scored.
    """

    keep: int
    tokens: tuple[int, ...]
    scored: int
    hidden: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.tokens):
            raise BranchError(f"scored is {self.scored}; a branch of {len(self.tokens)} tokens allows 1 to all but one")


class BranchScorer:
    """Score branches with one model; `packed` is False if the model does not support a tree mask."""

    def __init__(self, model: Any, *, tokens_per_pass: int = TOKENS_PER_PASS, packed: bool = True) -> None:
        """`model` is a transformers causal language model in evaluation mode."""
        self._model = model
        self._tokens_per_pass = tokens_per_pass
        self._checked = not packed
        self.packed = packed
        self._cached: list[int] = []
        self._cache: Any = None

    def logprobs(self, context: Sequence[int], branches: Sequence[Branch]) -> list[Floats]:
        """Return log p in nats of each branch's scored tokens, [scored] each, in the order of `branches`."""
        scored: list[Floats] = []
        for branch, distribution in zip(branches, self.distributions(context, branches), strict=True):
            wanted = torch.tensor(branch.tokens[-branch.scored :], device=distribution.device)
            picked = distribution.gather(1, wanted[:, None])[:, 0]
            scored.append(picked.double().cpu().numpy())
        return scored

    @torch.inference_mode()
    def distributions(self, context: Sequence[int], branches: Sequence[Branch]) -> Iterator[Tensor]:
        """Yield the full log-probabilities that predict each branch's scored tokens, [scored, vocab] in float32+.

        Raises:
            BranchError: a branch keeps or hides what the context does not have, or the model's logits are NaN.
        """
        for branch in branches:
            if not 0 < branch.keep <= len(context) or not 0 <= branch.hidden[0] <= branch.hidden[1] <= branch.keep:
                raise BranchError(f"keep {branch.keep}, hidden {branch.hidden}: the context has {len(context)} tokens")
        if not self._checked and branches:
            self._check(context, branches[-1])
        if not self.packed:
            for branch in branches:
                yield self._plain(context, branch)
            return
        waiting = list(branches)
        while waiting:
            group = _group(waiting, self._tokens_per_pass)
            try:
                found = self._pack(context, group)
            except torch.OutOfMemoryError:
                if self._tokens_per_pass <= FEWEST_TOKENS_PER_PASS:
                    raise
                self._tokens_per_pass //= 2
                self._cached, self._cache = [], None
                continue
            yield from found
            del waiting[: len(group)]

    def _check(self, context: Sequence[int], branch: Branch) -> None:
        """Compare two packed branches with a plain pass, once per model."""
        self._checked = True
        plain = self._plain(context, branch)
        try:
            packed = self._pack(context, [branch, branch])[1]
        except BranchError:
            raise
        except (ValueError, TypeError, RuntimeError):
            self.packed = False
        else:
            wanted = torch.tensor(branch.tokens[-branch.scored :], device=plain.device)[:, None]
            worst = float((plain.gather(1, wanted) - packed.gather(1, wanted)).abs().max())
            self.packed = worst <= TOLERANCE_NATS.get(self._model.dtype, TOLERANCE_HALF_NATS)
        if not self.packed:
            self._cached, self._cache = [], None

    def _plain(self, context: Sequence[int], branch: Branch) -> Tensor:
        ids = [*context[: branch.keep], *branch.tokens]
        mask = _causal(len(ids), self._model)
        if branch.hidden[1] > branch.hidden[0]:
            mask[..., branch.keep :, slice(*branch.hidden)] = torch.finfo(mask.dtype).min
        logits = self._model(
            input_ids=torch.tensor([ids], device=self._model.device),
            attention_mask=mask if branch.hidden[1] > branch.hidden[0] else None,
            use_cache=False,
            logits_to_keep=branch.scored + 1,
        ).logits[0, :-1]
        return _log_softmax(logits)

    def _pack(self, context: Sequence[int], group: Sequence[Branch]) -> list[Tensor]:
        """Run one pass over the group, after the context's own keys and values."""
        self._hold(context)
        n_context, n_packed = len(context), sum(len(branch.tokens) for branch in group)
        lowest = torch.finfo(self._model.dtype).min
        mask = torch.full((n_packed, n_context + n_packed), lowest, dtype=self._model.dtype)
        ids: list[int] = []
        positions: list[int] = []
        predictors: list[int] = []
        for branch in group:
            begin, end = len(ids), len(ids) + len(branch.tokens)
            mask[begin:end, : branch.keep] = 0
            mask[begin:end, slice(*branch.hidden)] = lowest
            mask[begin:end, n_context + begin : n_context + end].triu_(1)  # what is above the diagonal stays hidden
            ids += branch.tokens
            positions += range(branch.keep, branch.keep + len(branch.tokens))
            predictors += range(end - branch.scored - 1, end - 1)
        device = self._model.device
        try:
            logits = self._model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=mask[None, None].to(device),
                position_ids=torch.tensor([positions], device=device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=torch.tensor(predictors, device=device),
            ).logits[0]
        except BaseException:
            self._cached, self._cache = [], None  # some of its layers may already hold the group
            raise
        self._cache.crop(-n_packed)
        return list(torch.split(_log_softmax(logits), [branch.scored for branch in group]))

    def _hold(self, context: Sequence[int]) -> None:
        """Fill the cache with `context`, and keep what it shares with the previous one."""
        from transformers import DynamicCache

        alike = (a == b for a, b in zip(self._cached, context, strict=False))
        shared = sum(1 for _ in takewhile(bool, alike))
        if self._cache is None:
            self._cache, shared = DynamicCache(), 0
        elif shared < len(self._cached):
            self._cache.crop(shared - len(self._cached))
        fresh = list(context[shared:])
        self._cached = list(context)
        if not fresh:
            return
        device = self._model.device
        try:
            self._model(
                input_ids=torch.tensor([fresh], device=device),
                position_ids=torch.arange(shared, len(context), device=device)[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except BaseException:
            self._cached, self._cache = [], None
            raise


def _group(branches: Sequence[Branch], tokens: int) -> list[Branch]:
    """Take the first branches that fit into this many tokens, at least one."""
    group = [branches[0]]
    used = len(branches[0].tokens)
    for branch in branches[1:]:
        used += len(branch.tokens)
        if used > tokens:
            break
        group.append(branch)
    return group


def _causal(n: int, model: Any) -> Tensor:
    """Build an additive causal mask, [1, 1, n, n]."""
    lowest = torch.finfo(model.dtype).min
    return torch.full((n, n), lowest, dtype=model.dtype, device=model.device).triu_(1)[None, None]


def _log_softmax(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    if bool(logp.isnan().any()):
        raise BranchError("the model's logits are not finite (NaN); nothing can be scored with it")
    return logp
