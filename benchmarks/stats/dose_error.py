"""What an error in matching two doses adds to the error of a difference between the arms. Pure.

A claim about two arms of equal dose treats the matched temperature as exact. It was solved on a finite text, so the
doses differ by m nats, known as m_hat with standard error s_m. If the score changes by b per nat, the difference is
off by b m. The matched arm's own effect over the baseline gives b: b_hat = effect / dose, with s_b = s_effect / dose.
The second moment of b m, with both as uncertain as they are, is

    v = (b_hat^2 + s_b^2) (m_hat^2 + s_m^2),

which is added to the variance of the difference. Nothing is subtracted from the difference itself: b_hat comes from
the samples of the difference, and correcting by it would add an error that is not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import scipy.special

from .estimators import ALPHA, Estimate

HALF_WIDTH = float(scipy.special.ndtri(1 - ALPHA / 2))  # of a 95% interval, in standard deviations


@dataclass(frozen=True)
class Mismatch:
    """How well the dose of one arm was matched, in nats. `error`, `error_se`: the mismatch that is known, and how well.

    `effect`: of the matched arm over the baseline, in the metric of the difference.
    """

    dose: float
    error: float
    error_se: float
    effect: Estimate

    @property
    def variance(self) -> float:
        """Of the difference, in the metric squared; NaN where the effect of the dose is not known."""
        if self.dose == 0.0:
            return math.nan
        slope = (self.effect.value**2 + self.effect.se**2) / self.dose**2
        return slope * (self.error**2 + self.error_se**2)


@dataclass(frozen=True)
class DoseError:
    """The error of dose matching in one difference, standard deviations: `sd` in its metric, `nats` of the dose."""

    sd: float
    nats: float

    @property
    def ci95(self) -> tuple[float, float]:
        """Half widths of 95% intervals: in the metric, and in nats."""
        return HALF_WIDTH * self.sd, HALF_WIDTH * self.nats


def dose_error(mismatches: Iterable[Mismatch]) -> DoseError | None:
    """Return the error from all mismatches of a difference together, None if its arms have none.

    Two arms matched to the same third one share that one's error, so taking them as independent is on the safe side.
    """
    found = list(mismatches)
    if not found:
        return None
    nats = math.sqrt(sum(one.error**2 + one.error_se**2 for one in found))
    return DoseError(math.sqrt(sum(one.variance for one in found)), nats)
