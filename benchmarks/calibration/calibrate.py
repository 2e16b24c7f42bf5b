"""Measure the quantiles of a model's token entropies at temperature 1, on text that it wrote itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count

import numpy as np
from numpy.typing import NDArray

from steerdec.common import bootstrap
from steerdec.common.paper import FORK_SHARE
from steerdec.common.progress import RunProgress
from steerdec.problems.sets import ProblemSet
from steerdec.records.calibration import Calibration, CalibrationProblems, problem_hash

from .measuring import Measured, Measuring, Request, TooFewTokensError

PERCENTILES = range(50, 100)
BOOTSTRAP_DRAWS = 1000
MAX_EMPTY_ANSWERS = 1000


async def sample_tokens(
    measuring: Measuring,
    problem_set: ProblemSet,
    measures: list[Measured],
    *,
    tokens: int,
    probe_temperatures: Sequence[float],
) -> None:
    """Sample the problems round after round until `measures` has at least `tokens` tokens; new ones are appended to it.

    Every answer that was begun is awaited and counted; otherwise the long ones would be missing. The probe temperatures
    take turns over the samples of a problem, and over the problems.

    Raises:
        TooFewTokensError: the answers are empty, or failed too often.
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
        JournalError: the journal cannot be written.
    """
    have = {(one.problem_id, one.sample) for one in measures}
    total = sum(len(one.entropy_nats) for one in measures)

    def requests() -> Iterator[Request]:
        for sample in count():
            for i, problem in enumerate(problem_set.problems):
                if total >= tokens:
                    return
                if len(measures) > MAX_EMPTY_ANSWERS and not total:
                    raise TooFewTokensError(f"{len(measures)} answers have no token")
                if (problem.id, sample) not in have:
                    probe = probe_temperatures[(sample + i) % len(probe_temperatures)] if probe_temperatures else None
                    yield Request(problem=problem, sample=sample, round=0, probe_temperature=probe)

    def keep(measured: Measured) -> None:
        nonlocal total
        measures.append(measured)
        total += len(measured.entropy_nats)

    if total < tokens:
        at_once = sum(endpoint.connections for endpoint in measuring.endpoints)
        with RunProgress(tokens, total, unit="tokens", at_once=at_once) as progress:
            await measuring.take(requests(), keep, progress)
    if not total:
        raise TooFewTokensError("no token was generated")


def calibration_of(measures: Sequence[Measured], problem_set: ProblemSet, measuring: Measuring) -> Calibration:
    """Return the quantiles, with their origin."""
    place = {problem.id: i for i, problem in enumerate(problem_set.problems)}
    used = [place[one.problem_id] for one in measures]
    entropies = np.concatenate([one.entropy_nats for one in measures]).astype(np.float64)
    owners = np.repeat(used, [len(one.entropy_nats) for one in measures])
    p80 = float(np.quantile(entropies, 1 - FORK_SHARE))
    return Calibration(
        model=measuring.prompting.model,
        tokens=len(entropies),
        quantiles_nats={f"p{q}": round(float(np.quantile(entropies, q / 100)), 6) for q in PERCENTILES},
        p80_ci95=quantile_ci95(entropies, owners, 1 - FORK_SHARE, np.random.default_rng(measuring.seed)),
        share_below_0_01=float(np.mean(entropies < 0.01)),
        fork_rate=float(np.mean(entropies > round(p80, 6))),
        problems=CalibrationProblems(
            name=problem_set.name,
            hash=problem_set.sha256,
            problem_hashes=tuple(sorted({problem_hash(problem_set.problems[i]) for i in used})),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        temperature=measuring.temperature,
        prompt=measuring.prompting.template,
        samples=len(measures),
    )


def quantile_ci95(
    values: NDArray[np.float64], owners: NDArray[np.int64], q: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a quantile. Whole problems are drawn, because their tokens are alike.

    Args:
        values: [tokens].
        owners: [tokens] the problem each value belongs to.
        q: in (0, 1).

    With one problem the interval is a point: it says nothing about other problems.
    """
    names, owner = np.unique(owners, return_inverse=True)
    drawn = bootstrap.weights(len(names), rng, BOOTSTRAP_DRAWS)
    found = bootstrap.interval(bootstrap.quantiles(values, owner, np.array([q]), drawn))
    assert found is not None, "every draw has tokens"
    return found
