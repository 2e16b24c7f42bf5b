"""Measure how much the answer loses when a token of the chain is left out (arXiv 2601.03066).

The objective is the log-likelihood of the reference *answer* alone. The paper's joint objective, answer and remaining
chain, removes surprising tokens first, so it anti-correlates with entropy by construction. Surprisal may still explain
part of an agreement, so :func:`without` removes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from steerdec.analysis.lenses.branches import Branch, BranchScorer, Floats


def leave_one_out(
    scorer: BranchScorer, prompt: Sequence[int], chain: Sequence[int], ending: Sequence[int], scored: int
) -> Floats:
    """Return the loss in nats of the answer's log p when one token is left out and the rest moves up; [n_chain].

    This is not greedy deletion: every token is left out alone, so if two tokens can replace each other, neither seems
    to matter. `ending` is the closing words with the answer, of which the last `scored` tokens count. N passes, packed.
    """
    context = [*prompt, *chain]
    whole = Branch(len(context), tuple(ending), scored)
    loss = scorer.logprobs(context, [whole, *_without_each(prompt, chain, ending, scored)])
    totals = np.array([float(np.sum(one)) for one in loss])
    return np.asarray(totals[0] - totals[1:], dtype=np.float64)


def greedy_steps(
    scorer: BranchScorer, prompt: Sequence[int], chain: Sequence[int], ending: Sequence[int], scored: int
) -> NDArray[np.int64]:
    """Return at which step (1 to N) each token is deleted if the one that costs the answer least goes first; [n_chain].

    The later a token is deleted, the more it matters. Of equal ones, the first is deleted. N (N + 1) / 2 passes,
    packed; each step keeps the keys and values before the deleted token.
    """
    step = np.zeros(len(chain), dtype=np.int64)
    left = list(range(len(chain)))
    for number in range(1, len(chain) + 1):
        if len(left) == 1:
            step[left[0]] = number
            break
        tokens = [chain[i] for i in left]
        branches = _without_each(prompt, tokens, ending, scored)
        totals = [float(np.sum(one)) for one in scorer.logprobs([*prompt, *tokens], branches)]
        step[left.pop(int(np.argmax(totals)))] = number
    return step


def _without_each(prompt: Sequence[int], chain: Sequence[int], ending: Sequence[int], scored: int) -> list[Branch]:
    return [Branch(len(prompt) + i, (*chain[i + 1 :], *ending), scored) for i in range(len(chain))]


def without(scores: ArrayLike, explained_by: ArrayLike) -> Floats:
    """Remove from the ranks of `scores` a linear fit on the ranks of `explained_by`; [n].

    The rank correlation of the result with `explained_by` is 0. A constant `explained_by` removes nothing.
    """
    y, x = scipy.stats.rankdata(np.asarray(scores)), scipy.stats.rankdata(np.asarray(explained_by))
    y, x = y - np.mean(y), x - np.mean(x)
    spread = float(x @ x)
    return np.asarray(y if spread == 0 else y - x * (float(x @ y) / spread), dtype=np.float64)
