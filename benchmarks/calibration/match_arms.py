"""Solve an arm set's matched temperatures on the text of the calibration, and check them on a little more.

The samples of the calibration itself took turns at the first temperatures (see `curves`), so nothing is sampled twice.
Each further round samples new text, probed at the temperatures just solved, and solves again with all the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerdec.common import bootstrap
from steerdec.common.progress import RunProgress
from steerdec.problems.sets import ProblemSet
from steerdec.records.arms import Arm, ArmError, ArmSet
from steerdec.records.calibration import Matched, Matching

from ..design.resolving import resolve
from . import matching
from .arm_doses import Doses, arm_doses
from .curves import Curves, measure_curves
from .matching import Means
from .measuring import Measured, Measuring, Request

MAX_TIMES_TOKENS = 2.5  # of --tokens, all rounds together
TOLERANCE_NATS = 1e-3  # between the requested dose and the measured one, or twice its standard error
MAX_ROUNDS = 6  # that check solved temperatures; two or three are usual
SHARE_OF_FIRST_ROUND = 0.5  # of the tokens that are left
ERROR_DRAWS = 200


@dataclass(frozen=True)
class Pair:
    """An arm with a temperature to solve, and the arm whose dose it must match; all other temperatures are numbers."""

    arm: Arm
    other: Arm

    def missed(self, means: Means, temperature: float) -> float:
        """Return by how many nats the arm at that temperature misses the other arm's dose."""
        part = matching.solved_part(self.arm)
        return means.dose_nats(self.arm, **{part: temperature}) - means.dose_nats(self.other)


def pairs_of(arm_set: ArmSet, *, temperature: float, threshold_nats: float) -> list[Pair]:
    """Return the arms to solve. Raises ArmError if the set has one that cannot be solved at all."""
    pairs = list(matching.to_solve(arm_set))
    known = {arm.name: temperature for arm, _ in pairs}  # any allowed number, for the others to resolve
    resolved = resolve(arm_set, temperature=temperature, threshold_nats=threshold_nats, fork_rate=0.5, solved=known)
    return [
        Pair(matching.unsolved_again(resolved.arm(arm.name), arm), resolved.arm(other.name)) for arm, other in pairs
    ]


def first_temperatures(pairs: Sequence[Pair], base: float) -> list[float]:
    """Return the temperatures at which the samples of the calibration take turns; 1 is known for all of them."""
    arms = [arm for pair in pairs for arm in (pair.arm, pair.other)]
    return [at for at in matching.first_looks(base, arms) if at != 1.0]


async def match_arms(
    arm_set: ArmSet,
    pairs: list[Pair],
    problem_set: ProblemSet,
    measuring: Measuring,
    measures: list[Measured],
    *,
    tokens: int,
    threshold_nats: float,
    fork_rate: float,
) -> Matching:
    """Return temperatures for every "solve" of the set; an arm without one is left out, with the reason.

    `measures` has the samples of the calibration and, if one was stopped, of its rounds; further ones are appended. All
    samples together have at most `MAX_TIMES_TOKENS` times `tokens` tokens.

    Raises:
        TooFewTokensError: samples failed.
        NoEndpointLeftError, NoGoodAnswerError: see `dispatch`.
        JournalError: the journal cannot be written.
    """
    base, ids = measuring.temperature, [problem.id for problem in problem_set.problems]
    plan = _Rounds(measures, problem_set, tokens)
    unmatched: dict[str, str] = {}
    asked: dict[str, float] = {}  # by arm, the temperature that the last round measured
    for number in range(1, MAX_ROUNDS + 2):
        curves = measure_curves([one for one in measures if one.round < number], ids, threshold_nats)
        means = Means(base, curves.contributions())
        solved = _solve(means, pairs, unmatched)
        open_pairs = [pair for pair in pairs if pair.arm.name in solved]
        if asked and all(_within(curves, base, pair, asked[pair.arm.name]) for pair in open_pairs):
            break
        temperatures = sorted({at for at in solved.values() if at != 1.0})  # 1 is known for every token
        if number > MAX_ROUNDS or not temperatures:
            last = solved if not temperatures else asked
            for pair in open_pairs:
                if not _within(curves, base, pair, last[pair.arm.name]):
                    unmatched[pair.arm.name] = _not_found(means, pair, last[pair.arm.name])
            break
        await plan.take(number, temperatures, measuring, measures)
        asked = solved
    drawn = bootstrap.weights(len(curves.all_tokens), np.random.default_rng(measuring.seed), matching.BOOTSTRAP_DRAWS)
    draws = [found for weights in drawn if base in (found := curves.contributions(weights))]
    draw_means = [Means(base, draw) for draw in draws]
    kept = [pair for pair in pairs if pair.arm.name not in unmatched]
    resolved = resolve(
        arm_set,
        temperature=base,
        threshold_nats=threshold_nats,
        fork_rate=fork_rate,
        solved={pair.arm.name: solved.get(pair.arm.name, base) for pair in pairs},
    )
    described = resolved.model_copy(update={"arms": tuple(a for a in resolved.arms if a.name not in unmatched)})
    return Matching(
        temperature=base,
        threshold_nats=threshold_nats,
        arms=arm_set.name,
        tokens=sum(len(one.entropy_nats) for one in measures),
        samples=len(measures),
        looks=sorted({one.probe_temperature for one in measures if one.probe_temperature is not None} | {1.0}),
        matched=tuple(
            Matched(
                arm=pair.arm.name,
                matched=pair.other.name,
                temperature=solved[pair.arm.name],
                temperature_ci95=matching.interval(draw_means, pair.arm, pair.other),
                target_nats=means.dose_nats(pair.other),
                dose_nats=means.dose_nats(pair.other) + pair.missed(means, solved[pair.arm.name]),
                arm_at=matching.temperatures(pair.arm) | {matching.solved_part(pair.arm): solved[pair.arm.name]},
                matched_at=matching.temperatures(pair.other),
            )
            for pair in kept
        ),
        unmatched=unmatched,
        doses=arm_doses(
            described,
            Doses(base, curves.contributions(), draws),
            threshold_nats,
            {pair.arm.name: pair.other.name for pair in kept},
        ),
    )


def _solve(means: Means, pairs: Sequence[Pair], unmatched: dict[str, str]) -> dict[str, float]:
    """Return the temperatures by arm; arms without one are added to `unmatched` with the reason."""
    solved = {}
    for pair in pairs:
        if pair.arm.name in unmatched:
            continue
        try:
            solved[pair.arm.name] = round(matching.solve(means, pair.arm, pair.other), 6)
        except ArmError as e:
            unmatched[pair.arm.name] = str(e)
    return solved


class _Rounds:
    """How many samples each round takes, fixed by the samples of the calibration."""

    def __init__(self, measures: Sequence[Measured], problem_set: ProblemSet, tokens: int) -> None:
        own = [one for one in measures if one.round == 0]
        spent = sum(len(one.entropy_nats) for one in own)
        self._problems = problem_set.problems
        self._tokens_each = spent / len(own)
        self._left = max(0.0, MAX_TIMES_TOKENS * tokens - spent)
        self._next_sample = 1 + max(one.sample for one in own)

    async def take(
        self, number: int, temperatures: Sequence[float], measuring: Measuring, measures: list[Measured]
    ) -> None:
        """Sample round `number`, from 1, unless `measures` already has it."""
        share = SHARE_OF_FIRST_ROUND if number == 1 else (1 - SHARE_OF_FIRST_ROUND) / (MAX_ROUNDS - 1)
        answers = max(len(temperatures), math.floor(share * self._left / self._tokens_each))
        first = self._next_sample
        self._next_sample += math.ceil(answers / len(self._problems))
        have = {(one.problem_id, one.sample) for one in measures if one.round == number}

        def requests() -> Iterator[Request]:
            for i in range(answers):
                turn, place = divmod(i, len(self._problems))
                problem, sample = self._problems[place], first + turn
                if (problem.id, sample) not in have:
                    probe = temperatures[(turn + place) % len(temperatures)]
                    yield Request(problem=problem, sample=sample, round=number, probe_temperature=probe)

        if len(have) < answers:
            expected = round((answers - len(have)) * self._tokens_each)
            at_once = sum(endpoint.connections for endpoint in measuring.endpoints)
            with RunProgress(expected, 0, unit=f"tokens of check {number}", at_once=at_once) as progress:
                await measuring.take(requests(), measures.append, progress)


def _within(curves: Curves, base: float, pair: Pair, temperature: float) -> bool:
    """Return whether the arm at that temperature has the other arm's dose, as far as the samples can say."""
    missed = abs(pair.missed(Means(base, curves.contributions()), temperature))
    if missed <= TOLERANCE_NATS:
        return True
    weights = bootstrap.weights(len(curves.all_tokens), np.random.default_rng(0), ERROR_DRAWS)
    draws = []
    for w in weights:
        contributions = curves.contributions(w)
        if len(contributions) == len(curves.sums_nats | {1.0: None}):
            draws.append(pair.missed(Means(base, contributions), temperature))
    return len(draws) > ERROR_DRAWS // 2 and missed <= 2 * float(np.std(draws))


def _not_found(means: Means, pair: Pair, temperature: float) -> str:
    return (
        f'arm "{pair.arm.name}": no temperature was found in {MAX_ROUNDS} rounds; the last, {temperature:g}, misses '
        f'the dose of "{pair.other.name}", {means.dose_nats(pair.other):+.4f} nats, by '
        f"{pair.missed(means, temperature):+.4f}; allowed is {TOLERANCE_NATS:g}"
    )
