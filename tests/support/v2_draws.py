"""Tokens drawn by the V2 engine, held to the distribution that the reference says, and to one whose T' is 3% off.

By tokens, and by a dozen groups of tokens ordered by probability, which tell more about a temperature.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import LLM, SamplingParams

from steerdec.check.distribution import truncated
from steerdec.common.chi_square import chi_square, power
from steerdec.kernels import reference
from steerdec.policies import registry
from steerdec.steering import encoding
from steerdec.steering.params import PAPER_THRESHOLD_NATS

DRAWS = 10_000
AT_ONCE = 128
ALPHA = 1e-3
OFF = 1.03  # a neighbor's T' over the right one
GROUPS = 12
FIRST_SEED = 10_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What a token is drawn with, and which tokens a grammar allows."""

    steering: dict[str, Any] | None
    temperature: float = 0.8
    top_p: float = 1.0
    allowed: Sequence[int] | None = None

    def params(self, **sampling: Any) -> SamplingParams:
        extra: dict[str, Any] = {} if self.steering is None else {v2_engine.request.STEERING_ARG: self.steering}
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            extra_args=extra or None,
            ignore_eos=True,
            detokenize=False,
            **sampling,
        )

    def expected(self, z: Tensor, position: int = 0, off: float = 1.0) -> Floats:
        """Return the probabilities [vocab] at a row of float64 logits, T' times `off`."""
        z = z.clone()
        if self.allowed is not None:
            mask = torch.full_like(z, -torch.inf)
            mask[list(self.allowed)] = 0.0
            z += mask
        t = self.temperature
        if self.steering is not None:
            one = encoding.encode(registry.parse(self.steering), t, PAPER_THRESHOLD_NATS)
            table = torch.tensor([one.floats], dtype=torch.float64), torch.tensor([one.ints(0)])
            outcome = reference.steer_(z.clone()[None], *table, torch.tensor([0]), torch.tensor([position]))
            t = float(outcome.temperature[0])
        return truncated(z / (t * off), self.top_p)


def logits_after(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int = 1) -> list[tuple[list[int], Tensor]]:
    """Return each prompt's greedy tokens, and the logits [tokens, vocab] of them up to a constant, float64."""
    greedy = SamplingParams(temperature=0, max_tokens=tokens, logprobs=-1, ignore_eos=True, detokenize=False)
    found = []
    for done in llm.generate([{"prompt_token_ids": list(p)} for p in prompts], greedy, use_tqdm=False):
        rows = torch.full((tokens, llm.model_config.get_vocab_size()), -torch.inf, dtype=torch.float64)
        for row, step in zip(rows, done.outputs[0].logprobs, strict=True):
            row[list(step)] = torch.tensor([entry.logprob for entry in step.values()], dtype=torch.float64)
        found.append((list(done.outputs[0].token_ids), rows))
    return found


def grouped(p: Floats) -> NDArray[np.int64]:
    """Return the group [vocab] of each token: about equal shares, the most likely tokens first."""
    order = np.argsort(-p, kind="stable")
    groups = np.empty(len(p), np.int64)
    groups[order] = np.minimum(np.cumsum(p[order]) - p[order] / 2, 1 - 1e-9) * GROUPS
    return groups


def in_groups(groups: NDArray[np.int64], p: Floats) -> Floats:
    return np.bincount(groups, weights=p, minlength=GROUPS)


def telling(case: Case, z: Tensor, position: int = 0) -> float:
    """Return how surely the draws reject the neighbor."""
    p, near = (case.expected(z, position, off) for off in (1.0, OFF))
    groups = grouped(p)
    return power(in_groups(groups, near), in_groups(groups, p), DRAWS, ALPHA)


def p_values(tokens: NDArray[np.int64], p: Floats, near: Floats) -> dict[str, float]:
    """Return the p-values by tokens and by groups, the neighbor's by groups, and how many bins the tokens have."""
    groups = grouped(p)
    by_tokens, bins = chi_square(tokens, p)
    by_groups, neighbor = (chi_square(groups[tokens], in_groups(groups, q))[0] for q in (p, near))
    return {"tokens": by_tokens, "groups": by_groups, "neighbor": neighbor, "bins": bins}


def assert_drawn(name: str, tokens: NDArray[np.int64], p: Floats, near: Floats) -> None:
    found = p_values(tokens, p, near)
    print(f"{name}: {len(tokens):,} draws, {found}", flush=True)
    assert found["bins"] > 10
    assert min(found["tokens"], found["groups"]) > ALPHA, found
    assert found["neighbor"] < ALPHA, f"the draws do not tell a T' from one that is 3% off: {found}"
