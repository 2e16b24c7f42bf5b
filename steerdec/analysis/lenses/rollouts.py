"""Measure what chains do to the reference answer: across sampled chains (R3), and along one chain (ours).

R3 (arXiv 2506.13351) asks at which tokens of the *reference answer* the model's certainty depends on the chain of
reasoning. Its positions are in the answer, so it has no place in a table over the chain's tokens, and is compared with
other scores in the answer. For the chain, :func:`answer_shift` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steerdec.analysis.lenses.branches import Branch, BranchScorer, Floats


@dataclass(frozen=True)
class AnswerVariance:
    """Statistics over the sampled chains, for each token of the reference answer; each [n_answer]."""

    sigma_nats: Floats  # standard deviation of log p (ddof 1)
    even_nats: Floats  # the same over chains with even index only, and with odd index: how far sigma repeats
    odd_nats: Floats
    entropy_nats: Floats  # mean entropy of the distribution that predicts the token
    surprisal_nats: Floats  # mean -log p


def answer_variance(
    scorer: BranchScorer, prompt: Sequence[int], chains: Sequence[Sequence[int]], ending: Sequence[int], scored: int
) -> AnswerVariance:
    """Compute sigma_j = std over N chains of log p(y_j | prompt, chain_i, closing, y_<j), y the reference answer.

    Args:
        chains: token ids; at least four chains, two per half.
        ending: the closing words and y; y is the last `scored` tokens.

    Raises:
        ValueError: there are fewer than four chains.
    """
    if len(chains) < 4:
        raise ValueError(f"{len(chains)} chains; the spread over chains needs at least 4")
    branches = [Branch(len(prompt), (*chain, *ending), scored) for chain in chains]
    logp, entropy = [], []
    for branch, distribution in zip(branches, scorer.distributions(prompt, branches), strict=True):
        exact = distribution.double()
        rows = range(scored)
        logp.append([float(exact[row, token]) for row, token in zip(rows, branch.tokens[-scored:], strict=True)])
        entropy.append(torch.special.entr(exact.exp()).sum(dim=1).cpu().numpy())
    table = np.array(logp)
    return AnswerVariance(
        sigma_nats=np.std(table, axis=0, ddof=1),
        even_nats=np.std(table[::2], axis=0, ddof=1),
        odd_nats=np.std(table[1::2], axis=0, ddof=1),
        entropy_nats=np.mean(entropy, axis=0),
        surprisal_nats=-np.mean(table, axis=0),
    )


def answer_logp(
    scorer: BranchScorer, prompt: Sequence[int], chain: Sequence[int], ending: Sequence[int], scored: int
) -> Floats:
    """Return log p(answer | prompt, chain up to token t, closing) in nats for t = -1 (no chain) to N - 1; [N + 1]."""
    branches = [Branch(len(prompt) + kept, tuple(ending), scored) for kept in range(len(chain) + 1)]
    return np.array([float(np.sum(one)) for one in scorer.logprobs([*prompt, *chain], branches)])


def answer_shift(logp: Floats) -> Floats:
    """Compute delta_t = log p(y | q, c_<=t, closing) - log p(y | q, c_<t, closing), signed; [N].

    `logp` is from :func:`answer_logp`. Ours: what one more token of the chain does to the answer if the model had to
    answer now.
    """
    return np.diff(logp)
