"""Limits for a mean difference with few nonzero parts, where Student's t is blind. Pure.

If no problem differs, t sees no spread and is certain of 0; if one in fifty problems flips from right to wrong, its
interval is far too narrow (equivalence within 2 points is declared in 8-20% of runs where it is false). Here the gains
and the losses are sums of rare events. Each has the gamma limits of Fay and Feuer (1997, Statistics in Medicine 16),
which allow for one more unseen event of the largest weight; equal weights give the exact Poisson limits. The limits of
gains minus losses follow by squares (Zou and Donner 2008, Statistics in Medicine 27).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special

from .estimators import Floats

_SMALLEST = 1e-12


@dataclass(frozen=True)
class RareParts:
    """A difference as weighted gains minus weighted losses.

    `events`: how many parts are not zero. `largest`: the weight of the largest part there can be. `extra_sd`: standard
    deviation of an independent normal error of the difference, which the limits hold too.
    """

    gain: float
    gain_square: float
    loss: float
    loss_square: float
    largest: float
    events: int
    extra_sd: float = 0.0

    @property
    def value(self) -> float:
        return self.gain - self.loss

    def limits(self, tail: float) -> tuple[float, float]:
        """Lower and upper limit, each missed with chance `tail` at most."""
        least_gain, most_gain = _gamma_limits(self.gain, self.gain_square, self.largest, tail)
        least_loss, most_loss = _gamma_limits(self.loss, self.loss_square, self.largest, tail)
        extra = float(-scipy.special.ndtri(tail)) * self.extra_sd if self.extra_sd > 0 else 0.0
        low = self.value - float(np.hypot(np.hypot(self.gain - least_gain, most_loss - self.loss), extra))
        high = self.value + float(np.hypot(np.hypot(most_gain - self.gain, self.loss - least_loss), extra))
        return max(low, -1.0), min(high, 1.0)

    def p_above(self, null: float) -> float:
        """One-sided p of the hypothesis that the difference is `null` or more: small if it is clearly below."""
        return _solve(lambda tail: self.limits(tail)[1] - null)

    def p_below(self, null: float) -> float:
        """One-sided p of the hypothesis that the difference is `null` or less."""
        return _solve(lambda tail: null - self.limits(tail)[0])


def rare_parts(values: Floats, weights: Floats) -> RareParts:
    """Return gains and losses of `values` between -1 and 1, each times its weight; both [n]."""
    parts = values * weights
    gains, losses = np.maximum(parts, 0.0), np.maximum(-parts, 0.0)
    return RareParts(
        gain=float(gains.sum()),
        gain_square=float(gains @ gains),
        loss=float(losses.sum()),
        loss_square=float(losses @ losses),
        largest=float(weights.max(initial=0.0)),
        events=int(np.sum(np.abs(values) > 1e-12)),
    )


def equal_half_width(se: float, n_problems: int, tail: float) -> float:
    """Return how far from 0 the limits reach around a difference of 0, of problems that differ normally."""
    spread = se * np.sqrt(n_problems)
    gain, square = spread / np.sqrt(2 * np.pi), spread**2 / 2 / n_problems  # a normal's mean above 0, half its variance
    by_events = RareParts(gain, square, gain, square, 1 / n_problems, n_problems).limits(tail)[1]
    return max(float(-scipy.special.stdtrit(n_problems - 1, tail)) * se, by_events)


def _gamma_limits(total: float, square: float, largest: float, tail: float) -> tuple[float, float]:
    lower = 0.0
    if total > 0:
        lower = float(scipy.special.gammaincinv(total**2 / square, tail)) * square / total
    more, more_square = total + largest, square + largest**2
    upper = float(scipy.special.gammainccinv(more**2 / more_square, tail)) * more_square / more
    return lower, upper


def _solve(excess: Callable[[float], float]) -> float:
    """Return the tail at which the limit reaches the null; `excess(tail)` is how far the limit reaches over it."""
    if excess(0.5) >= 0:
        return 1.0
    if excess(_SMALLEST) <= 0:
        return _SMALLEST
    log_tail = scipy.optimize.brentq(lambda x: excess(float(np.exp(x))), np.log(_SMALLEST), np.log(0.5), xtol=1e-6)
    return float(np.exp(log_tail))
