"""The thresholds of a sequence's tokens where they move: what its own recorded entropies make of the rule."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from steerdec.steering.memory import Rule
from steerdec.telemetry.lanes import Lane


class Thresholds:
    """The moving thresholds of one sequence, followed once from its first token on.

    A worker decides on the float32 entropies that it records, by the same rule, so that they need no record.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule, self._state = rule, rule.first()
        self._nats: list[float] = []

    def of(self, lane: Lane, start: int, stop: int) -> NDArray[np.float64]:
        """Return those of tokens `start` to `stop` (exclusive), all returned already; NaN where H is not known."""
        if stop > len(self._nats):
            for h in lane.read(len(self._nats), stop).entropy_nats.tolist():
                self._nats.append(math.nan if math.isnan(h) else self._state.threshold_nats)
                self._state = self._rule.after(self._state, h)
        return np.array(self._nats[start:stop], np.float64)
