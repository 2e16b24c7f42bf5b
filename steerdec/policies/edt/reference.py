"""edt in plain torch."""

from __future__ import annotations

from torch import Tensor

from steerdec.policies.edt.fields import BASE, LOWEST, THETA
from steerdec.policies.steered import Steered
from steerdec.steering.encoding import REQUEST_T


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' of a fork: arXiv 2403.14541."""
    temperature = floats[REQUEST_T] * floats[BASE] ** (floats[THETA] / h) if h > 0 else LOWEST
    return Steered(max(temperature, LOWEST))
