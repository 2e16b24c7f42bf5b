"""Solve for the temperature at which one arm adds as much entropy as another: pure arithmetic on measured curves.

The dose of an arm is the mean over all tokens of H(softmax(z / T')) - H(softmax(z / T)): what it adds to the entropy of
the distributions really sampled, token by token on the same text, which is the baseline's on calibration problems. On
text that an arm writes itself, the consequences of its mistakes would mix in. As a token is either a fork or not, the
dose of every arm follows from two curves over temperature: the entropy that forks contribute to the mean, and the
entropy that the other tokens contribute.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from steerdec.common import bootstrap
from steerdec.policies.registry import temperature_fields
from steerdec.records.arms import Arm, ArmError, ArmSet, applied

LOWEST, HIGHEST = 0.05, 5.0  # times the base temperature: the curves' ends
FIRST_LOOKS = (0.25, 0.5, 1.5, 2.5)  # times the base
SOLVED = "solve"
BOOTSTRAP_DRAWS = 500
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)  # on (-1, 1)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contribution:
    """Entropy at one temperature, by problem [n_problems]: sums over the fork tokens, over the others; tokens."""

    forks_nats: Floats
    others_nats: Floats
    tokens: Floats


class Means:
    """The two curves, mean nats per token over temperature; between measured points monotone in ln T."""

    def __init__(self, base: float, measured: Mapping[float, Contribution]) -> None:
        self.base, self.low, self.high = base, min(measured), max(measured)
        looks = sorted(measured)

        def mean_nats(nats: Floats, c: Contribution) -> float:
            return float(nats.sum() / c.tokens.sum())

        forks = [mean_nats(measured[t].forks_nats, measured[t]) for t in looks]
        others = [mean_nats(measured[t].others_nats, measured[t]) for t in looks]
        self._forks, self._others = (PchipInterpolator(np.log(looks), nats) for nats in (forks, others))

    def nats(self, part: str, temperature: float) -> float:
        """Return what "forks", "others" or "all" tokens contribute when sampled at that temperature."""
        if temperature == 0.0:
            return 0.0
        return sum(float(curve(math.log(temperature))) for curve in self._of(part))

    def kl_nats(self, part: str, temperature: float) -> float:
        """Return what "forks", "others" or "all" tokens contribute to the mean of `divergence`."""
        return sum(float(divergence(curve, temperature, self.base)) for curve in self._of(part))

    def _of(self, part: str) -> list[PchipInterpolator]:
        return {"forks": [self._forks], "others": [self._others], "all": [self._forks, self._others]}[part]

    def dose_nats(self, arm: Arm, **solved: float) -> float:
        """Return what a resolved arm adds to the mean entropy; `solved` replaces its "solve"."""
        return self._dose_nats(temperatures(arm) | solved)

    def _dose_nats(self, at: Mapping[str, float]) -> float:
        return sum(self.nats(part, t) - self.nats(part, self.base) for part, t in at.items())

    def excess(self, arm: Arm, part: str, target_nats: float) -> Callable[[float], float]:
        """Return, as a function of the logarithm of the temperature of `part`, the arm's dose above the target."""
        at = temperatures(arm)  # once: it parses the arm's steering
        return lambda log_t: self._dose_nats(at | {part: math.exp(log_t)}) - target_nats


def divergence(curve: PchipInterpolator, temperature: float, base: float) -> Floats:
    """Return KL(softmax(z / T') || softmax(z / T)), T the base, from the curve of the entropy over ln T'.

    For fixed logits d KL / d T' = (T' / T - 1) dH / d T', with H the entropy at T'. That is linear in H, so from the
    mean entropy over tokens follows their mean divergence: the integral of |t / T - 1| dH(t) between T and T', here
    by Gauss's rule between the curve's points. Exactly 0 at T. Below the curve H is taken to grow in proportion to t.

    Args:
        curve: values [points, ...]; the result is of shape [...].
    """
    lowest, found = math.exp(curve.x[0]), np.zeros(curve.c.shape[2:])
    low, high = sorted((temperature, base))
    if low == 0.0 and high > 0.0:
        low = lowest
        found = found + (1.0 - lowest / (2.0 * base)) * curve(curve.x[0])
    a, b, rise = math.log(low), math.log(high), curve.derivative()
    for left, right in itertools.pairwise([a, *(float(knot) for knot in curve.x if a < knot < b), b]):
        u = left + (right - left) * (_NODES + 1.0) / 2.0
        weights = (right - left) / 2.0 * _WEIGHTS * np.abs(np.exp(u) / base - 1.0)
        found = found + np.tensordot(weights, rise(u), axes=1)
    return np.asarray(found, dtype=np.float64)


def temperatures(arm: Arm) -> dict[str, float]:
    """Return {"forks": T', "others": T'} of a resolved arm, or {"all": T'}; NaN for one to be solved.

    Raises:
        ArmError: the arm's dose does not follow from fixed temperatures on forks and others.
    """
    steering, (fork, other) = _of_two_temperatures(arm), arm.applied()
    assert fork is not None
    assert other is not None
    return {"all": fork} if steering.get("select") == "all" else {"forks": fork, "others": other}


def _of_two_temperatures(arm: Arm) -> dict[str, Any]:
    """Return the arm's steering, {} without one. Raises ArmError if it is of another kind."""
    steering = arm.steering or {}
    usual: dict[str, tuple[Any, ...]] = {
        "select": ("entropy", "all"),
        "scope": ("all",),
        "hysteresis": (None, 0),
        "guard_mean_entropy_nats": (None,),
    }
    # May not be resolved yet; whether a policy's temperatures are fixed does not depend on their values.
    numbers = {name: 1.0 if name in temperature_fields() else value for name, value in steering.items()}
    fixed = None not in applied(1.0, numbers, f'arm "{arm.name}"')
    if not fixed or any(steering.get(name, values[0]) not in values for name, values in usual.items()):
        raise ArmError(
            f'arm "{arm.name}": its dose cannot be matched; that needs fixed temperatures (policy split), '
            "select entropy or all, scope all, no hysteresis, no guard"
        )
    return steering


def to_solve(arm_set: ArmSet) -> Iterator[tuple[Arm, Arm]]:
    """Return (arm, the arm it is matched to) for every arm with a temperature to solve.

    Raises:
        ArmError: the other arm is to be solved itself, an arm has two temperatures to solve, or its own threshold.
    """
    for arm in arm_set.arms:
        if not _unsolved(arm):
            continue
        if arm.matched is None:
            raise ArmError(f'arm "{arm.name}": "solve" needs the field matched, the arm whose dose it is to have')
        other = arm_set.arm(arm.matched)
        if _unsolved(other):
            raise ArmError(f'arm "{arm.name}": matched: "{other.name}" has a temperature to solve itself')
        for one in (other, arm):
            if "threshold_nats" in (steering := _of_two_temperatures(one)):
                raise ArmError(
                    f'arm "{one.name}": threshold_nats: {steering["threshold_nats"]} is its own; doses are matched at '
                    "the calibration's, so leave it out"
                )
        if _unsolved(arm) not in ({"fork_temperature"}, {"other_temperature"}):
            raise ArmError(f'arm "{arm.name}": exactly one of fork_temperature and other_temperature can be solved')
        yield arm, other


def _unsolved(arm: Arm) -> set[str]:
    values = {"temperature": arm.temperature} | (arm.steering or {})
    return {name for name, value in values.items() if value == SOLVED}


def unsolved_again(resolved: Arm, arm: Arm) -> Arm:
    """Return `arm` in numbers, with "solve" in place of the solved temperature, where `resolve` needs a number too."""
    return resolved.model_copy(update={"steering": (resolved.steering or {}) | dict.fromkeys(_unsolved(arm), SOLVED)})


def first_looks(base: float, arms: Iterable[Arm]) -> list[float]:
    """Return the temperatures to measure before anything can be solved: the base, the ends, and those of the arms."""
    looks = {base, *(round(factor * base, 6) for factor in (LOWEST, *FIRST_LOOKS, HIGHEST))}
    for arm in arms:
        looks |= {t for t in temperatures(arm).values() if t > 0.0}  # a NaN is not
    return sorted(looks)


def solve(means: Means, arm: Arm, other: Arm) -> float:
    """Return the temperature at which `arm` has the dose of `other`.

    Raises:
        ArmError: no temperature between the curves' ends gives it.
    """
    target = means.dose_nats(other)
    excess = means.excess(arm, solved_part(arm), target)
    ends = math.log(means.low), math.log(means.high)
    at_low, at_high = map(excess, ends)
    if not at_low <= 0.0 <= at_high:
        raise ArmError(
            f'arm "{arm.name}": no temperature from {means.low:g} to {means.high:g} changes the mean entropy by '
            f'{target:+.4f} nats, as "{other.name}" does; there is {at_low + target:+.4f} to {at_high + target:+.4f}'
        )
    return math.exp(brentq(excess, *ends, xtol=1e-9))


def solved_part(arm: Arm) -> str:
    """Return which tokens' temperature is to be solved: "forks", "others" or "all"."""
    if "other_temperature" in _unsolved(arm):
        return "others"
    return "all" if (arm.steering or {}).get("select") == "all" else "forks"


def interval(draws: Iterable[Means], arm: Arm, other: Arm) -> tuple[float, float]:
    """Return the percentile interval of `solve` over bootstrap draws; draws without a solution are left out."""
    found = []
    for means in draws:
        with contextlib.suppress(ArmError):
            found.append(solve(means, arm, other))
    return (bootstrap.interval(found) if found else None) or (math.nan, math.nan)
