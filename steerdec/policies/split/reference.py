"""split in plain torch."""

from __future__ import annotations

from torch import Tensor

from steerdec.policies.split.fields import FORK_T
from steerdec.policies.steered import Steered


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    """Return T' of a fork: arXiv 2506.01939, equation 5."""
    return Steered(floats[FORK_T])
