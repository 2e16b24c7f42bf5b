"""Plan from a run: the noise of a comparison, the length of answers, and the chance of each verdict in the next run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from steerdec.common.errors import InvalidInputError

from ..stats import metrics, secondary
from ..stats.looks import plan_looks
from ..stats.pairing import pair_up
from ..verdicts.summary import read_run_data
from .forecast import Assumptions, Forecast, forecast

MAX_PROBLEMS: Final = 5_000  # of a simulated study; thousands of them are held at once


class PlanError(InvalidInputError):
    """A run from which the next one cannot be planned; one plain line."""


@dataclass(frozen=True)
class Observed:
    """What a run showed. `pair`: the noisiest of the claimed comparisons, on which the assumptions are based."""

    pair: tuple[str, str]
    assumptions: Assumptions
    n_problems: int
    samples: int
    arms: int
    mean_tokens: float  # of a sample, over all arms


def observe(folder: str | Path) -> Observed:
    """Return what the samples of a run, finished or not, say about its claims.

    Raises:
        SummaryError: the folder is not a run.
        PlanError: there is no claim, or no claimed pair has two problems with two common samples.
    """
    data = read_run_data(folder)
    pairs = list(dict.fromkeys((claim.arm, claim.against) for claim in data.design.claims))
    seen: list[tuple[float, tuple[str, str], Assumptions]] = []
    for arm, against in pairs:
        pair = pair_up(data.tables[arm], data.tables[against]).graded_only()
        samples = pair.common.sum(axis=1)
        enough = samples > 1
        if enough.sum() < 2:
            continue
        spread = metrics.spread(pair, "avg@k")
        noise = float(np.mean((spread.variance * samples)[enough]))
        varies = secondary.variation(spread).sd
        assumed = Assumptions(noise, varies, data.design.delta, len(pairs))
        seen.append((varies**2 + noise / data.samples, (arm, against), assumed))
    if not seen:
        raise PlanError(f"{folder}: no claimed pair of arms has two problems with two common samples to plan from")
    _, noisiest, assumptions = max(seen, key=lambda one: one[0])
    known = data.tally.tokens[data.tally.tokens > 0]
    return Observed(
        pair=noisiest,
        assumptions=assumptions,
        n_problems=len(data.tally.problems),
        samples=data.samples,
        arms=len(data.design.arms),
        mean_tokens=float(known.mean()) if len(known) else np.nan,
    )


def sizes(n_problems: int, samples: int) -> Iterator[tuple[int, int]]:
    """Yield the size itself, twice the problems, and twice the samples: what a doubled budget can buy.

    Raises:
        PlanError: so many problems cannot be simulated.
    """
    if not 2 <= n_problems <= MAX_PROBLEMS:
        raise PlanError(f"--problems: {n_problems} cannot be planned from a run; allowed are 2 to {MAX_PROBLEMS}")
    yield n_problems, samples
    yield 2 * n_problems, samples
    yield n_problems, 2 * samples


def chances(observed: Observed, target: float, n_problems: int, samples: int) -> Forecast:
    """Return the chance of each verdict at the default looks if the true difference is `target` (a fraction)."""
    return forecast(target, n_problems, samples, observed.assumptions, plan_looks(samples))
