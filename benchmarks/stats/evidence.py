"""What the data of a look say of one difference, with what the ungraded samples could have been. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerdec.records.summary import Metric, Population

from . import metrics
from .comparisons import DifferenceEstimate, Spread, difference, equivalence_p
from .dose_error import DoseError
from .pairing import Pair

_LENGTHS: tuple[Metric, ...] = ("tokens", "tokens per correct")


@dataclass(frozen=True)
class Evidence:
    """One difference on the graded samples, and its one-sided p-values at the worst.

    Each p is the largest of three: from the graded samples alone, and with every ungraded one taken as wrong in the
    arm and right in the other, and the other way round. So whatever the ungraded samples were, no p is too small.

    `bounds`: the difference at the two worst cases; `bounds_ci95` from the lowest end to the highest.
    """

    estimate: DifferenceEstimate
    spread: Spread
    p_greater: float
    p_less: float
    p_equal: float
    pairs: int
    ungraded: int
    bounds: tuple[float, float]
    bounds_ci95: tuple[float, float]
    obstacle: str = ""  # why no verdict can be reached, whatever the numbers
    dose_error: DoseError | None = None  # of dose matching, None where the arms were not matched


def evidence(
    pair: Pair, metric: Metric, population: Population, delta: float, dose_error: DoseError | None = None
) -> Evidence:
    """Compare a pair in one metric and population; every error holds that of the dose matching, where there is one."""
    graded = pair.graded_only()
    spread = metrics.spread(graded, metric)
    extra_sd, obstacle = 0.0, ""
    if dose_error is not None:
        extra_sd = dose_error.sd
        if not np.isfinite(extra_sd):
            extra_sd, obstacle = 0.0, "what the score changes per nat is not known, so neither is the matching's error"
    found = difference(spread, population, extra_sd)
    doubtful = int(pair.ungraded.sum())
    cases = [found]
    if metric in _LENGTHS or metric == "truncation":
        table = (pair.arm.truncated, pair.against.truncated)
        if metric in _LENGTHS:
            table = (pair.arm.tokens, pair.against.tokens)
        doubtful = int(np.sum(pair.common & (np.isnan(table[0]) | np.isnan(table[1]))))
    if doubtful:
        if metric in ("avg@k", "pass@k"):
            cases += [difference(metrics.spread(worst, metric), population, extra_sd) for worst in pair.at_worst()]
        else:
            obstacle = f"{doubtful} samples have no grade or length, and nothing bounds what they do to {metric}"
    return Evidence(
        estimate=found,
        spread=spread,
        p_greater=_largest([case.p_greater for case in cases]),
        p_less=_largest([case.p_less for case in cases]),
        p_equal=_largest([equivalence_p(case, delta) for case in cases]),
        pairs=int(np.sum(graded.common)),
        ungraded=doubtful,
        bounds=(cases[1].value, cases[2].value) if len(cases) == 3 else (np.nan, np.nan),
        bounds_ci95=(
            (min(case.ci95[0] for case in cases), max(case.ci95[1] for case in cases))
            if len(cases) == 3
            else (np.nan, np.nan)
        ),
        obstacle=obstacle,
        dose_error=dose_error,
    )


def _largest(values: list[float]) -> float:
    """Return the largest; an unknown value counts as 1."""
    return float(max(1.0 if np.isnan(value) else value for value in values))
