"""Forecast what a run will show and cost for a given effect: simulated looks, under assumptions that are printed.

    python -m steerdec.benchmarks.design.forecast

prints how many of the planned samples a verdict takes, by effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from ..stats.estimators import Floats
from ..stats.looks import FRACTIONS, FUTILE, PlannedLook, boundaries, chance_of_a_verdict, plan_looks
from ..stats.rare import equal_half_width
from .power import ACCURACY, ACCURACY_SD

STUDIES = 4000
SAMPLES = 32  # per problem and arm, in the table


@dataclass(frozen=True)
class Assumptions:
    """The assumed truth about a comparison.

    `noise_variance`: of one paired difference of two samples; 2 p (1 - p) for independent arms, less if they share
    luck. `effect_sd`: of the true effect between problems. `claims`: how many claims share the error.
    """

    noise_variance: float
    effect_sd: float
    delta: float
    claims: int = 1


@dataclass(frozen=True)
class Forecast:
    """Chances of the verdicts on a claim that the effect is above 0, and the expected share of the planned samples."""

    holds: float
    reversed: float
    no_effect: float
    undecided: float
    share: float


def forecast(
    effect: float,
    n_problems: int,
    samples: int,
    assumptions: Assumptions,
    looks: Sequence[PlannedLook] | None = None,
    *,
    seed: int = 0,
) -> Forecast:
    """Simulate `STUDIES` runs of one comparison and judge them as a real run is judged, look by look.

    The difference of a problem is normal: its effect, plus noise that falls with the number of samples. Student's t
    over problems decides, against the bounds of the looks at the level of the first step of Holm; a claim is given up
    if a verdict at the end has become unlikely.

    Args:
        looks: one at the end if not given.

    Raises:
        ValueError: fewer than two problems.
    """
    if n_problems < 2:
        raise ValueError(f"n_problems is {n_problems}; at least 2 is allowed")
    looks = tuple(looks) if looks else (PlannedLook(samples, samples),)
    at = np.array([look.samples for look in looks])
    rng = np.random.default_rng([seed, n_problems, samples])
    truth = effect + assumptions.effect_sd * rng.standard_normal((STUDIES, n_problems))
    steps = np.diff([0, *at])
    total = np.zeros((STUDIES, n_problems))
    verdict = np.zeros(STUDIES, dtype=np.int64)  # 0 none, 1 holds, 2 reversed, 3 no effect, 4 given up
    used = np.zeros(STUDIES)
    level = 0.025 / assumptions.claims
    bounds, equal_bounds = boundaries(looks, level), boundaries(looks, 2 * level)
    for number, look in enumerate(looks):
        noise = np.sqrt(assumptions.noise_variance * steps[number])
        total += truth * steps[number] + noise * rng.standard_normal((STUDIES, n_problems))
        d = total / look.samples
        value, se = d.mean(axis=1), d.std(axis=1, ddof=1) / np.sqrt(n_problems)
        waiting = verdict == 0
        used[waiting] = look.samples
        above = scipy.special.stdtr(n_problems - 1, -value / se)
        verdict[waiting & (above < bounds[number])] = 1
        verdict[waiting & (1 - above < bounds[number])] = 2
        half = _half_width(se, n_problems, equal_bounds[number])
        verdict[(verdict == 0) & (np.abs(value) + half < assumptions.delta)] = 3
        if number < len(looks) - 1:
            within = assumptions.noise_variance / look.samples
            between = np.maximum(0.0, se**2 * n_problems - within)
            final = np.sqrt((between + assumptions.noise_variance / at[-1]) / n_problems)
            nearest = np.maximum(0.0, assumptions.delta - _half_width(final, n_problems, 0.05))
            chance = chance_of_a_verdict(value, se, final, nearest)
            verdict[(verdict == 0) & (chance < FUTILE)] = 4
    counts = np.bincount(verdict, minlength=5) / STUDIES
    return Forecast(
        holds=float(counts[1]),
        reversed=float(counts[2]),
        no_effect=float(counts[3]),
        undecided=float(counts[0] + counts[4]),
        share=float(used.mean() / at[-1]),
    )


def _half_width(se: Floats, n_problems: int, tail: float) -> Floats:
    """Return `equal_half_width` of each error, interpolated."""
    grid = np.linspace(float(se.min()), float(se.max()) + 1e-12, 20)
    widths: Floats = np.interp(se, grid, [equal_half_width(float(one), n_problems, max(tail, 1e-12)) for one in grid])
    return widths


@dataclass(frozen=True)
class Saving:
    """What planned looks save.

    `equal_power_samples`: those of a design with one look, at its end, that has the power of the planned looks.
    """

    effect: float
    effect_sd: float
    shared: float
    fixed: Forecast
    planned: Forecast
    equal_power_samples: int

    @property
    def share(self) -> float:
        """Samples to a verdict against a design of equal power with one look at its end."""
        return self.planned.share * SAMPLES / self.equal_power_samples


def savings(n_problems: int = 60) -> list[Saving]:
    """Return the rows of the table in docs/performance.md."""
    variance = ACCURACY * (1 - ACCURACY) - ACCURACY_SD**2
    rows = []
    for effect in (0.15, 0.10, 0.05, 0.0):
        for effect_sd in (0.0, 0.05):
            for shared in (0.0, 0.5):
                assumed = Assumptions(2 * variance * (1 - shared), effect_sd, 0.02)
                fixed = forecast(effect, n_problems, SAMPLES, assumed)
                planned = forecast(effect, n_problems, SAMPLES, assumed, plan_looks(SAMPLES, FRACTIONS))
                equal = SAMPLES
                # 4,000 studies cannot distinguish powers near 1, and without an effect there is no power to match.
                while effect and planned.holds < fixed.holds < 0.9995 and equal > 1:
                    fewer = forecast(effect, n_problems, equal - 1, assumed)
                    if fewer.holds < planned.holds:
                        break
                    equal -= 1
                rows.append(Saving(effect, effect_sd, shared, fixed, planned, equal))
    return rows


def main() -> None:
    power = f"power, one look | power, {len(FRACTIONS)} looks"
    print(f"| effect, points | its spread | shared luck | {power} | samples | at equal power |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in savings():
        print(
            f"| {100 * row.effect:g} | {100 * row.effect_sd:g} | {row.shared:.0%} | {row.fixed.holds:.3f} "
            f"| {row.planned.holds:.3f} | {row.planned.share:.2f} | {row.share:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
