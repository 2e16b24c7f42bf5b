"""What a policy makes of a fork, as the reference steps return it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Steered(NamedTuple):
    """The distribution that a fork is sampled from: softmax(z / T') over the tokens whose logit is at least `floor`.

    T' = 0 keeps the first of the largest logits alone, and goes without a floor. T' = inf makes all tokens that are
    kept equally likely, and needs a floor.
    """

    temperature: float
    floor: float = -math.inf
