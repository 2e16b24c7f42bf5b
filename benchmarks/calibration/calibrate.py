"""Measure the quantiles of a model's token entropies: of its own distributions (temperature 1), on text it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from steerdec.common import bootstrap
from steerdec.common.errors import SteerdecError
from steerdec.common.paper import FORK_SHARE
from steerdec.common.progress import RunProgress
from steerdec.common.seeds import sample_seed
from steerdec.problems.sets import ProblemSet
from steerdec.records.arms import Arm
from steerdec.records.calibration import Calibration, CalibrationProblems, problem_hash

from ..design.plan import PlannedSample
from ..run.answers import Answer, Failure, parse_answer
from ..run.dispatch import Outcome, dispatch
from ..run.endpoint_health import Retry
from ..run.endpoints import Endpoint
from ..run.sample_requests import Prompting, max_answer_bytes, requested_steering, sample_request

PERCENTILES = range(50, 100)
BOOTSTRAP_DRAWS = 1000


def measuring_arm(temperature: float) -> Arm:
    """Steering at the base temperatures changes nothing; it is what makes the server measure."""
    steering: dict[str, JsonValue] = {
        "fork_temperature": temperature,
        "other_temperature": temperature,
        "telemetry": "tokens",
    }
    return Arm(name="calibration", role="identity", temperature=temperature, steering=steering)


class TooFewTokensError(SteerdecError):
    """There are too few tokens to take quantiles of."""


@dataclass
class _Collected:
    """The entropies of the answers so far, [tokens of the answer] each, with the index of their problem."""

    entropies_nats: list[NDArray[np.float32]] = field(default_factory=list)
    problems: list[int] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)


async def calibrate(
    problem_set: ProblemSet,
    endpoints: Sequence[Endpoint],
    *,
    prompting: Prompting,
    temperature: float,
    tokens: int,
    max_tokens: int,
    seed: int,
    retry: Retry,
) -> Calibration:
    """Sample the problems at `temperature`, round after round, until at least `tokens` tokens are there.

    Every answer that was begun is waited for and counted, or the long ones would be missing.

    Raises:
        TooFewTokensError: the answers are empty, or failed too often.
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
    """
    got, arm = _Collected(), measuring_arm(temperature)
    place = {problem.id: i for i, problem in enumerate(problem_set.problems)}

    def planned() -> Iterator[PlannedSample]:
        number = count()
        for sample in count():
            for problem in problem_set.problems:
                if got.tokens >= tokens:
                    return
                if len(got.errors) > 100 + len(got.problems):
                    raise TooFewTokensError(f"{len(got.errors)} samples failed, the last: {got.errors[-1]}")
                if len(got.problems) > 1000 and not got.tokens:
                    raise TooFewTokensError(f"{len(got.problems)} answers without a token")
                yield PlannedSample(
                    number=next(number),
                    problem=problem,
                    arm=arm,
                    sample=sample,
                    seed=sample_seed(seed, problem.id, sample),
                )

    async def send(endpoint: Endpoint, one: PlannedSample) -> Answer:
        return await measured_answer(endpoint, one, prompting, max_tokens)

    with RunProgress(tokens, 0, unit="tokens") as progress:

        async def keep(one: PlannedSample, endpoint: Endpoint, outcome: Outcome) -> None:
            if isinstance(outcome, Failure):
                got.errors.append(outcome.reason)
                return
            finite = [h for h in outcome.entropy_nats or [] if h is not None]
            got.entropies_nats.append(np.asarray(finite, dtype=np.float32))
            got.problems.append(place[one.problem.id])
            got.tokens += len(finite)
            progress.advance(len(finite), len(finite))

        await dispatch(planned(), endpoints, send, keep, retry)

    if not got.tokens:
        raise TooFewTokensError("no token was generated")
    entropies = np.concatenate(got.entropies_nats).astype(np.float64)
    owners = np.repeat(got.problems, [len(h) for h in got.entropies_nats])
    p80 = float(np.quantile(entropies, 1 - FORK_SHARE))
    return Calibration(
        model=prompting.model,
        tokens=got.tokens,
        quantiles_nats={f"p{q}": round(float(np.quantile(entropies, q / 100)), 6) for q in PERCENTILES},
        p80_ci95=quantile_ci95(entropies, owners, 1 - FORK_SHARE, np.random.default_rng(seed)),
        share_below_0_01=float(np.mean(entropies < 0.01)),
        fork_rate=float(np.mean(entropies > round(p80, 6))),
        problems=CalibrationProblems(
            name=problem_set.name,
            hash=problem_set.sha256,
            problem_hashes=tuple(sorted({problem_hash(problem_set.problems[i]) for i in got.problems})),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        temperature=temperature,
        prompt=prompting.template,
        samples=len(got.problems),
    )


async def measured_answer(endpoint: Endpoint, planned: PlannedSample, prompting: Prompting, max_tokens: int) -> Answer:
    """Request one sample with per-token telemetry. Raises EndpointError, MalformedAnswerError."""
    path, body = sample_request(planned, prompting, max_tokens=max_tokens, per_token=True)
    raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(max_tokens, per_token=True))
    return parse_answer(raw, max_tokens=max_tokens, steering=requested_steering(planned.arm, per_token=True))


def quantile_ci95(
    values: NDArray[np.float64], owners: NDArray[np.int64], q: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap interval of a quantile; whole problems are drawn, for their tokens are alike.

    Args:
        values: [tokens].
        owners: [tokens] the problem each value belongs to.
        q: in (0, 1).

    With one problem the interval is a point: it says nothing of other problems.
    """
    names, owner = np.unique(owners, return_inverse=True)
    drawn = bootstrap.weights(len(names), rng, BOOTSTRAP_DRAWS)
    found = bootstrap.interval(bootstrap.quantiles(values, owner, np.array([q]), drawn))
    assert found is not None, "every draw has tokens"
    return found
