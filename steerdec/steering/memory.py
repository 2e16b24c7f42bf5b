"""Steering that depends on a request's earlier tokens: a moving threshold, hysteresis, and a guard against runaway.

The rule, in plain Python: the specification of every backend, and what telemetry replays. One state stands for all
tokens so far, so that nothing is sorted and no list of entropies is kept. It is advanced at every generated token,
inside a steering scope or not:

- **Threshold.** Robbins and Monro's stochastic approximation of a quantile (1951), in the logarithm: after an entropy
  above the threshold it rises by eta q, else it falls by eta (1 - q), so that it rests where a share q of the entropies
  is not above it. In the logarithm a step is relative, so that the rule does not depend on the scale of a model's
  entropies. eta falls from 1/2 to 1/16 over the first 112 tokens and stays there, so that the threshold follows a text
  that changes.
- **Hysteresis.** A run of forks begins above the threshold, and ends at or below a lower level, a share of it.
- **Guard.** The mean of H: plain over the first `guard_tokens` tokens, exponential with the same weight after these.
  From the first token at which it is above the cap, steering is off for the rest of the request.

The state after a token is kept under the token's position, in a ring that is longer than the longest draft: what a
rejected draft leaves is overwritten before it is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from steerdec.steering import encoding
from steerdec.steering.params import LEAST_START_NATS

# Words of a state, int32 [requests, ring, WORDS]; floats as their bits.
POSITION: Final = 0  # of the token, plus 1; 0 where nothing was written
TOKENS: Final = 1  # whose entropy was known
MEAN: Final = 2  # float32
LEVEL: Final = 3  # float32, the threshold of the next token
FLAGS: Final = 4  # STOPPED | HIGH
WORDS: Final = 5
HIGH, STOPPED = 1, 2
SPARE: Final = 4  # entries of a ring beyond the drafts: vLLM may take a token back

FIRST_STEP: Final = 8.0  # eta = max(FIRST_STEP / (tokens + STEP_OFFSET), LEAST_STEP)
STEP_OFFSET: Final = 16.0
LEAST_STEP: Final = 1 / 16
LEAST_NATS: Final = LEAST_START_NATS  # a moving threshold is never below it: from 0 it could not rise


class State(NamedTuple):
    """What is remembered of a request's tokens."""

    tokens: int  # whose entropy was known
    mean_nats: float
    threshold_nats: float  # of the next token
    high: bool  # the last token was above its threshold, or in a run that hysteresis has not ended
    stopped: bool  # by the guard


class Rule(NamedTuple):
    """The numbers of one request, rounded to float32 as the workers have them."""

    start_nats: float  # the threshold of the first token
    quantile: float  # NO_QUANTILE: the threshold does not move
    lower_share: float  # of the threshold
    guard_nats: float  # NO_GUARD without
    guard_tokens: float

    @classmethod
    def of(cls, floats: Sequence[float]) -> Rule:
        """Return the rule in a row of the float table."""
        columns = encoding.QUANTILE, encoding.LOWER_SHARE, encoding.GUARD_NATS, encoding.GUARD_TOKENS
        start, *others = (float(np.float32(floats[column])) for column in (encoding.THRESHOLD, *columns))
        moves = others[0] != encoding.NO_QUANTILE
        return cls(float(np.float32(max(start, LEAST_NATS))) if moves else start, *others)

    @property
    def moves(self) -> bool:
        """Return whether the threshold moves."""
        return self.quantile != encoding.NO_QUANTILE

    @property
    def guarded(self) -> bool:
        """Return whether there is a guard."""
        return self.guard_nats != encoding.NO_GUARD

    def first(self) -> State:
        """Return the state before the first token."""
        return State(0, 0.0, self.start_nats, False, False)

    def after(self, state: State, h: float) -> State:
        """Return the state after a token whose entropy is `h` nats; NaN, an unknown entropy, changes nothing.

        The token itself is a fork if the new state is `high`, and is not steered if it is `stopped`.
        """
        if math.isnan(h):
            return state
        tokens = state.tokens + 1
        mean = _float32(state.mean_nats + (h - state.mean_nats) / min(float(tokens), self.guard_tokens))
        above = h > state.threshold_nats
        return State(
            tokens,
            mean,
            self._moved(state, above),
            above or (state.high and h > state.threshold_nats * self.lower_share),
            state.stopped or (self.guarded and tokens >= self.guard_tokens and mean > self.guard_nats),
        )

    def _moved(self, state: State, above: bool) -> float:
        if not self.moves:
            return state.threshold_nats
        eta = max(FIRST_STEP / (state.tokens + STEP_OFFSET), LEAST_STEP)
        moved = state.threshold_nats * math.exp(eta * (self.quantile - (0.0 if above else 1.0)))
        return _float32(max(moved, LEAST_NATS))


def ring_entries(draft_tokens: int) -> int:
    """Return how many states are kept of a request whose steps have up to `draft_tokens` drafts: a power of two."""
    return 1 << (draft_tokens + SPARE - 1).bit_length()


def _float32(value: float) -> float:
    return float(np.float32(value))
