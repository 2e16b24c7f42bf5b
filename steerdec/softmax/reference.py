"""The entropy of a row in plain float64 torch: what the other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_nats(z: Tensor) -> Tensor:
    """Return H of softmax(z), [rows, vocab] -> [rows] float64; NaN where softmax is undefined.

    H = log Z - (sum e d) / Z with d = z - max z, e = exp d, Z = sum e. Tokens at -inf add nothing
    (e d -> 0), and are left out so that 0 * -inf never appears.
    """
    d = z.double() - z.double().amax(-1, keepdim=True)  # NaN for a row of -inf, or with NaN or +inf in it
    e = d.exp()
    partition = e.sum(-1)
    return partition.log() - torch.where(e > 0, e * d, 0.0 * e).sum(-1) / partition
