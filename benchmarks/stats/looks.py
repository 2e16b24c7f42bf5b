"""Planned looks at a run: how small a p-value has to be at each, and which arms are still needed. Pure.

Repeated looks at a run that is under way raise false alarms (16 looks at a null: 22-24%). Here the error of 5% is spent
over looks planned beforehand, by the function of Lan and DeMets (1983) that resembles O'Brien and Fleming's bounds:
almost nothing early, nearly all at the end. Stopping at any of the looks errs in 5% of runs at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from .estimators import Floats

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of the planned samples
FUTILE = 0.10  # below this predicted chance of a verdict at the end, a claim is given up

_LEVELS = np.concatenate([np.geomspace(1e-9, 0.01, 15), np.linspace(0.02, 0.2, 10), np.linspace(0.3, 0.95, 6)])
_GRID = 161  # points of the numerical integration, over 8 standard deviations
_LIMIT = 8.0


@dataclass(frozen=True)
class PlannedLook:
    """A look when every problem has `samples` samples per arm, out of `planned` (the plan at the time).

    `problems`: the look is at that many of the first problems. None in every look of a run without added problems.
    """

    samples: int
    planned: int
    problems: int | None = None

    @property
    def information(self) -> int:
        """Samples of all problems, in a unit that is the same for all looks of a run."""
        return self.samples * (self.problems or 1)


def plan_looks(samples: int, fractions: Iterable[float] = FRACTIONS) -> tuple[PlannedLook, ...]:
    """Return the looks at `fractions` of `samples` samples per problem, the last at all of them.

    Looks that would fall together are one: 4 samples have looks at 1, 2 and 4.

    Raises:
        ValueError: a fraction is not above 0 and at most 1, or `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; at least 1 is allowed")
    fractions = tuple(fractions)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"a look at {fraction} of the samples is not possible; above 0 and at most 1 is allowed")
    at = sorted({max(1, round(samples * fraction)) for fraction in fractions} | {samples})
    return tuple(PlannedLook(number, samples) for number in at)


def spent(alpha: float | Floats, fraction: float) -> Floats:
    """Return the one-sided error spent when `fraction` of the information is there: 2 - 2 Phi(z_(1-alpha/2) / sqrt(t)).

    Equation 3 of Lan and DeMets (1983), Biometrika 70.
    """
    return np.asarray(2 * scipy.stats.norm.sf(scipy.stats.norm.isf(np.asarray(alpha) / 2) / np.sqrt(fraction)))


def boundaries(looks: Sequence[PlannedLook], alpha: float = 0.025) -> tuple[float, ...]:
    """Return the one-sided p-value to stay below at each look so that all looks together err with chance `alpha`.

    0 at a look where no error is left to spend: after a final look, or at one that an extended run moved back.
    """
    return tuple(float(np.exp(bound)) for bound in _log_boundaries(tuple(looks), alpha))


@lru_cache(maxsize=4096)
def _log_boundaries(looks: tuple[PlannedLook, ...], alpha: float) -> tuple[float, ...]:
    """Return the logarithms of the bounds, by the numerical integration of Armitage, McPherson and Rowe (1969).

    The information is taken to grow with the samples. Where the effect varies between problems it grows more slowly
    after the first look, the looks depend on each other more, and the bounds are a little too strict.
    """
    information = [look.information for look in looks]
    cumulative = np.maximum.accumulate([float(spent(alpha, look.samples / look.planned)) for look in looks])
    bounds, density, grid = [], np.zeros(0), np.zeros(0)
    before = 0.0
    for i, (info, total) in enumerate(zip(information, cumulative, strict=True)):
        step = total - before
        before = total
        if i == 0:
            bound = float(scipy.stats.norm.isf(step))
        else:
            sd = np.sqrt(info - information[i - 1])
            bound = _bound(density, grid / sd, float(np.sqrt(info)) / float(sd), float(step))
        bounds.append(float(scipy.stats.norm.logsf(bound)))
        top = min(bound, _LIMIT)
        following = np.linspace(-_LIMIT, top, _GRID) * np.sqrt(info)
        weight = np.full(_GRID, following[1] - following[0])
        weight[[0, -1]] /= 2
        if i == 0:
            arriving = np.exp(-(following**2) / (2 * info)) / np.sqrt(2 * np.pi * info)
        else:
            kernel = np.exp(-(((following[:, None] - grid) / sd) ** 2) / 2)
            arriving = kernel @ density / (sd * np.sqrt(2 * np.pi))
        density, grid = arriving * weight, following
    return tuple(bounds)


def _bound(density: Floats, grid: Floats, scale: float, step: float) -> float:
    """Return the z that is crossed with chance `step` from the states `grid` that have not crossed before."""

    def excess(z: float) -> float:
        return float(density @ scipy.special.ndtr(grid - z * scale)) - step

    if step <= 0 or excess(38.0) > 0:
        return np.inf
    return float(scipy.optimize.brentq(excess, -38.0, 38.0, xtol=1e-9)) if excess(-38.0) > 0 else -np.inf


@lru_cache(maxsize=256)
def _table(looks: tuple[PlannedLook, ...]) -> Floats:
    """Return [levels, looks]: the logarithms of the bounds at each of `_LEVELS`."""
    return np.array([_log_boundaries(looks, float(alpha)) for alpha in _LEVELS])


def adjusted_p(p: float, looks: Sequence[PlannedLook], look: int) -> float:
    """Return the one-sided p-value adjusted for the looks: the smallest error at which this look would decide.

    Adjusted p-values of several claims may be corrected by Holm as usual (Liu and Anderson 2008; Maurer and Bretz
    2013). With one look it is `p` itself.

    Args:
        p: one-sided, from the data at look number `look` (from 0) alone.
    """
    if np.isnan(p) or len(looks) == 1:
        return p
    column = _table(tuple(looks))[:, look]
    if not np.isfinite(column).any():
        return 1.0
    if p <= 0:
        return float(_LEVELS[0])
    known = np.isfinite(column)
    log_p = min(float(np.log(p)), 0.0)
    if log_p > column[known][-1]:
        return 1.0
    return float(np.exp(np.interp(log_p, column[known], np.log(_LEVELS[known]))))


def chance_of_a_verdict(
    value: float | Floats, se: float | Floats, final_se: float | Floats, within: float | Floats, level: float = 0.05
) -> Floats:
    """Return the predicted chance that a difference, `value` now with `se`, is decided at the end with `final_se`.

    Decided means different from 0, or so near it that it is equal. The value at the end is normal around the present
    one, with the variance that is still to come, as if nothing else were known of the effect. 1 if no error is known.

    Args:
        within: the largest difference from 0 that would be called equal at the end; 0 if none would.
    """
    value, se, final_se = (np.asarray(number, dtype=np.float64) for number in (value, se, final_se))
    known = (se > 0) & (final_se > 0)
    spread = np.sqrt(np.maximum(np.where(known, se**2 - final_se**2, 1.0), 1e-18))
    half = scipy.special.ndtri(1 - level / 2) * final_se
    different = scipy.special.ndtr((value - half) / spread) + scipy.special.ndtr((-half - value) / spread)
    equal = scipy.special.ndtr((within - value) / spread) - scipy.special.ndtr((-within - value) / spread)
    return np.where(known, np.minimum(1.0, different + equal), 1.0)


def arms_needed(
    arms: Sequence[str],
    baseline: str,
    checks: Collection[str],
    claims: Mapping[str, Collection[str]],
    settled: Collection[str],
) -> tuple[str, ...]:
    """Return the arms still to be sampled, in the order of `arms`.

    An arm is dropped once every claim that names it is settled. Arms that no claim names are there to be described, and
    stay to the end. The baseline and the checks of the instrument stay as long as any other arm does.

    Args:
        checks: arms that check the instrument (A/A, repeated baselines).
        claims: by id, the arms that a claim compares.
        settled: ids of claims that are decided, or given up.
    """
    waiting = {arm for name, compared in claims.items() if name not in settled for arm in compared}
    named = {arm for compared in claims.values() for arm in compared}
    others = {arm for arm in arms if arm != baseline and arm not in checks}
    kept = {arm for arm in others if arm in waiting or arm not in named}
    if not others and not named:
        return tuple(arms)
    return tuple(arm for arm in arms if arm in kept or (kept and arm not in others))
