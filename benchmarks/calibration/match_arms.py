"""Solve an arm set's matched temperatures: the same text is sampled again and again, each time looked at from another.

Every look samples the calibration problems at the base temperature with the same seeds, and asks for the
entropy of each token's softmax(z / T) at one temperature T. Where the engine is batch-invariant the text
of all looks is the same; elsewhere it differs here and there, by chance and not by arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerdec.common.progress import RunProgress
from steerdec.common.seeds import sample_seed
from steerdec.problems.sets import ProblemSet
from steerdec.records.arms import Arm, ArmError, ArmSet
from steerdec.records.calibration import Matched, Matching

from ..design.plan import PlannedSample
from ..design.resolving import resolve
from ..run.answers import Answer, Failure
from ..run.dispatch import Outcome, dispatch
from ..run.endpoint_health import Retry
from ..run.endpoints import Endpoint
from ..run.sample_requests import Prompting
from . import matching
from .calibrate import TooFewTokensError, measured_answer
from .matching import Contribution, Means

TOLERANCE_NATS = 1e-3  # between the dose asked for and the one measured
MAX_ROUNDS = 6  # of a look at every solved temperature; two or three are usual
MAX_FAILED_SHARE = 0.01  # of the samples of a look


async def match_arms(
    arm_set: ArmSet,
    problem_set: ProblemSet,
    endpoints: Sequence[Endpoint],
    *,
    prompting: Prompting,
    samples: int,
    max_tokens: int,
    seed: int,
    temperature: float,
    threshold_nats: float,
    retry: Retry,
) -> Matching:
    """Temperatures for every "solve" of the set at that base temperature and threshold, `samples` a problem.

    An arm that no temperature matches is left out, with the reason.

    Raises:
        ArmError: the set has an arm that cannot be solved for at all.
        TooFewTokensError: samples failed.
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
    """
    pairs = list(matching.to_solve(arm_set))
    known = {arm.name: temperature for arm, _ in pairs}  # any allowed number, for the others to resolve
    resolved = resolve(arm_set, temperature=temperature, threshold_nats=threshold_nats, fork_rate=0.5, solved=known)
    pairs = [(matching.unsolved_again(resolved.arm(arm.name), arm), resolved.arm(other.name)) for arm, other in pairs]
    measured: dict[float, Contribution] = {}

    async def look(at: float, progress: RunProgress) -> None:
        if at not in measured:
            measured[at] = await _looked(at, progress)

    async def _looked(at: float, progress: RunProgress) -> Contribution:
        arm = Arm(
            name="matching",
            role="identity",
            temperature=temperature,
            steering={
                "fork_temperature": temperature,
                "other_temperature": temperature,
                "threshold_nats": threshold_nats,
                "telemetry": "tokens",
                "probe_temperature": at,
            },
        )
        sums = np.zeros((3, len(problem_set.problems)))
        place = {problem.id: i for i, problem in enumerate(problem_set.problems)}
        errors: list[str] = []
        planned = (
            PlannedSample(
                number=sample * len(problem_set.problems) + i,
                problem=problem,
                arm=arm,
                sample=sample,
                seed=sample_seed(seed, problem.id, sample, "matching"),
            )
            for sample in range(samples)
            for i, problem in enumerate(problem_set.problems)
        )

        async def send(endpoint: Endpoint, one: PlannedSample) -> Answer:
            return await measured_answer(endpoint, one, prompting, max_tokens)

        async def keep(one: PlannedSample, endpoint: Endpoint, outcome: Outcome) -> None:
            tokens = 0
            if isinstance(outcome, Failure):
                errors.append(outcome.reason)
            else:
                # float: None, an entropy nobody recorded, becomes NaN and is left out
                probed = np.array(outcome.probe_entropy_nats or [], dtype=np.float64)
                fork, heard = np.array(outcome.fork or [], dtype=bool), ~np.isnan(probed)
                tokens = int(heard.sum())
                sums[:, place[one.problem.id]] += probed[heard & fork].sum(), probed[heard & ~fork].sum(), tokens
            progress.advance(1, tokens)

        await dispatch(planned, endpoints, send, keep, retry)
        if not sums[2].sum() or len(errors) > MAX_FAILED_SHARE * samples * len(problem_set.problems):
            raise TooFewTokensError(f"{len(errors)} samples failed, the last: {(errors or ['no token came'])[-1]}")
        return Contribution(*sums)

    looks = matching.first_looks(temperature, [arm for pair in pairs for arm in pair])
    each = samples * len(problem_set.problems)
    solved: dict[str, float] = {}
    unmatched: dict[str, str] = {}
    with RunProgress((len(looks) + 2 * len(pairs)) * each, 0, unit="samples") as progress:
        for at in looks:
            await look(at, progress)
        for _ in range(MAX_ROUNDS):
            means = Means(temperature, measured)
            for arm, other in pairs:
                try:
                    solved[arm.name] = round(matching.solve(means, arm, other), 6)
                except ArmError as e:
                    unmatched[arm.name] = str(e)
            pairs = [(arm, other) for arm, other in pairs if arm.name not in unmatched]
            solved = {arm.name: solved[arm.name] for arm, _ in pairs}
            if all(at in measured for at in solved.values()):
                break
            for at in solved.values():
                await look(at, progress)
            means = Means(temperature, measured)
            if all(abs(_missed(means, arm, other, solved[arm.name])) <= TOLERANCE_NATS for arm, other in pairs):
                break
    means, rng = Means(temperature, measured), np.random.default_rng(seed)
    for arm, other in pairs:
        missed = _missed(means, arm, other, solved[arm.name])
        if abs(missed) > TOLERANCE_NATS:
            unmatched[arm.name] = (
                f'arm "{arm.name}": no temperature was found in {MAX_ROUNDS} rounds; the last, {solved[arm.name]:g}, '
                f'misses the dose of "{other.name}", {means.dose_nats(other):+.4f} nats, by {missed:+.4f}; allowed is '
                f"{TOLERANCE_NATS:g}"
            )
    pairs = [(arm, other) for arm, other in pairs if arm.name not in unmatched]
    return Matching(
        temperature=temperature,
        threshold_nats=threshold_nats,
        arms=arm_set.name,
        tokens=int(measured[temperature].tokens.sum()),
        samples=each,
        looks=sorted(measured),
        matched=tuple(
            Matched(
                arm=arm.name,
                matched=other.name,
                temperature=solved[arm.name],
                temperature_ci95=matching.interval(temperature, measured, arm, other, rng),
                target_nats=means.dose_nats(other),
                dose_nats=means.dose_nats(other) + _missed(means, arm, other, solved[arm.name]),
                arm_at=matching.temperatures(arm) | {matching.solved_part(arm): solved[arm.name]},
                matched_at=matching.temperatures(other),
            )
            for arm, other in pairs
        ),
        unmatched=unmatched,
    )


def _missed(means: Means, arm: Arm, other: Arm, temperature: float) -> float:
    return means.dose_nats(arm, **{matching.solved_part(arm): temperature}) - means.dose_nats(other)
