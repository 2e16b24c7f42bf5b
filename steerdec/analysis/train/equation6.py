"""The policy gradient on forks alone, arXiv 2506.01939, equation 6, written out: the trainer is tested against it.

For token t of response i in a batch: r is its probability now divided by that when it was sampled, A_i the response's
advantage, H_t the entropy of the distribution that predicts it, and tau the batch's quantile of H at 1 - rho:

    loss = - 1/n sum over tokens with H_t >= tau of min(r A_i, clip(r, 1 - epsilon_low, 1 + epsilon_high) A_i)

n can be read in two ways. FORKS: the number of tokens in the sum, so that the loss is a mean over forks. ALL: the
number of tokens of all responses, as in TRL, so that the loss is about rho times as large.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

FORKS: Final = "forks"
ALL: Final = "all"
DIVISORS: Final = (FORKS, ALL)
EPSILON_LOW: Final = 0.2
EPSILON_HIGH: Final = 0.28


def forks_of(entropy_nats: Tensor, mask: Tensor, share: float) -> Tensor:
    """Mark tokens at or above the quantile at 1 - share, interpolated as in TRL; bool of any shape.

    Args:
        entropy_nats: entropies, of the same shape.
        mask: bool, the tokens that count.
        share: rho, the share of tokens that are forks.
    """
    if not bool(mask.any()):
        return torch.zeros_like(mask)
    return mask & (entropy_nats >= torch.quantile(entropy_nats[mask], 1 - share))


def loss(
    logp: Tensor, sampled_logp: Tensor, advantages: Tensor, entropy_nats: Tensor, mask: Tensor, share: float, per: str
) -> Tensor:
    """Compute the loss of a batch, a scalar; 0 if no token counts.

    Args:
        logp: [responses, tokens], log-probability of each token now.
        sampled_logp: [responses, tokens], the same when it was sampled.
        advantages: [responses].
        entropy_nats: [responses, tokens].
        mask: [responses, tokens], bool, the tokens that count.
        share: rho, the share of tokens that are forks.
        per: divisor of the sum, FORKS or ALL.
    """
    forks = forks_of(entropy_nats, mask, share)
    ratio = (logp - sampled_logp).exp()
    clipped = ratio.clamp(1 - EPSILON_LOW, 1 + EPSILON_HIGH)
    gain = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    n = (forks if per == FORKS else mask).sum()
    return -gain[forks].sum() / n.clamp(min=1)
