"""p_less in plain float64 torch."""

from __future__ import annotations

from torch import Tensor

from steerdec.policies.p_less.fields import FORK_T
from steerdec.policies.steered import Steered


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' and the floor of a fork: arXiv 2509.23234, with p = softmax(z / T')."""
    temperature = floats[FORK_T]
    return Steered(temperature, floor(z, temperature)) if temperature > 0.0 else Steered(0.0)


def floor(z: Tensor, temperature: float) -> float:
    """Return the smallest logit that is kept.

    p_i >= sum_j p_j^2 is z_i >= max z + T' ln(sum e^2 / sum e), e = exp((z - max z) / T'). In this form the largest
    logit is kept whatever the rounding, since e <= 1.
    """
    top = z.max()
    e = ((z - top) / temperature).exp()
    return float(top + temperature * ((e * e).sum() / e.sum()).log())
