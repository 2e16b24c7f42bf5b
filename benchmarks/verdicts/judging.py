"""Judge every claim of a run together, look by look, in one population. Pure.

The error is controlled over all claims, both directions, equivalence, and all planned looks: each one-sided p is first
adjusted for the looks, then corrected over the claims by Holm. A claim enters with the smaller of its two p-values,
that of a difference and that of equivalence, because at most one of them can be wrong. So the chance of any false
"holds", "reversed" or "no effect" in a run is 5%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerdec.common.multiplicity import holm
from steerdec.records.summary import Metric, Population

from ..stats import metrics
from ..stats.comparisons import DifferenceEstimate
from ..stats.estimators import ALPHA, Ints, student_interval
from ..stats.evidence import Evidence, evidence
from ..stats.looks import FUTILE, PlannedLook, adjusted_p, boundaries, chance_of_a_verdict
from ..stats.pairing import ArmTable, pair_up
from ..stats.rare import equal_half_width
from .dose_matches import DoseMatches
from .verdict import Claim, Corrected, Ruling, explain, too_few, verdict_of
from .wording import amount, plural

Compared = tuple[str, str, Metric]


@dataclass(frozen=True)
class Judgement:
    """A judged claim: at which look (-1: none yet), from what evidence, and whether a verdict is still possible."""

    ruling: Ruling
    look: int
    evidence: Evidence | None
    corrected: Corrected
    ci95: tuple[float, float]
    given_up: bool


@dataclass
class _State:
    """Running minima of the adjusted p-values of one comparison, one-sided."""

    greater: float = 1.0
    less: float = 1.0
    equal: float = 1.0
    look: int = -1
    evidence: Evidence | None = None
    chance: float = 1.0

    @property
    def difference(self) -> float:
        return min(1.0, 2 * min(self.greater, self.less))


def judge_all(
    claims: Sequence[Claim],
    tables: Mapping[str, ArmTable],
    looks: Sequence[PlannedLook],
    population: Population,
    delta: float,
    groups: Ints | None,
    matches: DoseMatches,
) -> dict[str, Judgement]:
    """Return a judgement for each claim, by id.

    A look counts for a claim once both arms have all its samples. A decided claim keeps its verdict at later looks.
    """
    states: dict[Compared, _State] = {claim.compared: _State() for claim in claims}
    deltas = {compared: _delta(tables, compared, delta) for compared in states}
    judged: dict[str, Judgement] = {}
    for number in range(len(looks)):
        for compared, state in states.items():
            _update(state, tables, compared, looks, number, population, deltas[compared], groups, matches)
        for claim in claims:
            state = states[claim.compared]
            if claim.id in judged or state.look != number or state.evidence is None:
                continue
            corrected = _corrected(states, claim.compared)
            verdict = verdict_of(claim.direction, corrected)
            if verdict != "undecided" and not _obstacle(state.evidence, population):
                judged[claim.id] = _judgement(claim, state, corrected, looks, population, deltas[claim.compared])
    for claim in claims:
        if claim.id not in judged:
            corrected, state = _corrected(states, claim.compared), states[claim.compared]
            judged[claim.id] = _judgement(claim, state, corrected, looks, population, deltas[claim.compared])
    return {claim.id: judged[claim.id] for claim in claims}


def _delta(tables: Mapping[str, ArmTable], compared: Compared, delta: float) -> float:
    """Return the equivalence margin: for scores as declared, for lengths 5% of the reference arm's."""
    if compared[2] in metrics.SCORES:
        return delta
    value = metrics.arm_value(tables[compared[1]], compared[2])
    return metrics.RELATIVE_DELTA * value if value > 0 else np.nan


def _update(
    state: _State,
    tables: Mapping[str, ArmTable],
    compared: Compared,
    looks: Sequence[PlannedLook],
    number: int,
    population: Population,
    delta: float,
    groups: Ints | None,
    matches: DoseMatches,
) -> None:
    arm, against, metric = compared
    samples, problems = looks[number].samples, looks[number].problems
    pair = pair_up(tables[arm], tables[against], samples, groups, problems)
    if pair.common.shape[1] < samples or not pair.common.all() or not pair.common.size:
        return
    matching = matches.error(tables, compared, population, samples, groups, problems)
    found = evidence(pair, metric, population, delta if delta > 0 else 1e-9, matching)
    state.look, state.evidence = number, found
    if _obstacle(found, population):
        return
    for side in ("greater", "less", "equal"):
        p = adjusted_p(getattr(found, f"p_{side}"), looks, number)
        setattr(state, side, min(getattr(state, side), p))
    state.chance = _chance(found, looks[number], looks[-1], delta)


def _obstacle(found: Evidence, population: Population) -> str:
    return found.obstacle or too_few(found.estimate, population)


def _chance(found: Evidence, look: PlannedLook, last: PlannedLook, delta: float) -> float:
    """Return the chance of a verdict at the last look.

    The sampling noise falls with the number of samples; the spread of the effect between problems does not.
    """
    kept = ~np.isnan(found.spread.differences)
    n = int(kept.sum())
    if look == last or n < 2:
        return 1.0
    noise = float(np.mean(found.spread.variance[kept]))
    between = max(0.0, float(np.var(found.spread.differences[kept], ddof=1)) - noise)
    final_n = n * (last.problems or 1) / (look.problems or 1)
    final_se = np.sqrt((between + noise * look.samples / last.samples) / final_n)
    if found.dose_error is not None:  # more samples do not lessen it
        final_se = np.hypot(final_se, found.dose_error.sd)
    within = max(0.0, delta - equal_half_width(float(final_se), n, ALPHA)) if found.spread.bounded else 0.0
    return float(chance_of_a_verdict(found.estimate.value, found.estimate.se, float(final_se), within))


def _corrected(states: Mapping[Compared, _State], compared: Compared) -> Corrected:
    """Return the Holm-corrected p over all comparisons: this one with its own p, the others with their smaller one."""
    best = {key: min(state.difference, state.equal) for key, state in states.items()}

    def corrected(p: float) -> float:
        family = best | {compared: p}
        return holm(list(family.values()))[list(family).index(compared)]

    state = states[compared]
    difference, greater = corrected(state.difference), state.greater <= state.less
    return Corrected(difference if greater else 1.0, 1.0 if greater else difference, corrected(state.equal))


def _judgement(
    claim: Claim,
    state: _State,
    corrected: Corrected,
    looks: Sequence[PlannedLook],
    population: Population,
    delta: float,
) -> Judgement:
    found = state.evidence
    if found is None:
        first = plural(looks[0].samples, "sample")
        reason = f"interim: the first planned look is at {first} of every problem in both arms"
        if len(looks) == 1:
            reason = f"interim: the run is not finished, and no look is planned before {first} of every problem"
        return Judgement(
            Ruling(claim.id, claim.statement, "undecided", reason), -1, None, corrected, (np.nan,) * 2, False
        )
    obstacle = _obstacle(found, population)
    verdict = "undecided" if obstacle else verdict_of(claim.direction, corrected)
    ci95 = _interval(found.estimate, looks, state.look)
    reason = explain(claim, verdict, replace(found.estimate, ci95=ci95), corrected, delta, found.dose_error)
    more = []
    if found.ungraded and not np.isnan(found.bounds[0]):
        score = claim.metric in metrics.SCORES
        low, high = (amount(bound, score=score) for bound in found.bounds)
        more.append(f"the {plural(found.ungraded, 'ungraded sample')} could make it anything from {low} to {high}")
    last = state.look == len(looks) - 1
    given_up = verdict == "undecided" and not last and (state.chance < FUTILE or bool(obstacle))
    if len(looks) > 1:
        at = f"look {state.look + 1} of {len(looks)}, at {plural(looks[state.look].samples, 'sample')}"
        if (problems := looks[state.look].problems) is not None:
            at += f" of {plural(problems, 'problem')}"
        more.append(at if verdict != "undecided" or last or given_up else f"interim: {at}")
    if given_up and not obstacle:
        more.append(f"the chance of a verdict at the end is {100 * state.chance:.0f}%, so its arms need not go on")
    whole = "; ".join(part for part in (obstacle, reason, *more) if part)
    return Judgement(Ruling(claim.id, claim.statement, verdict, whole), state.look, found, corrected, ci95, given_up)


def _interval(estimate: DifferenceEstimate, looks: Sequence[PlannedLook], number: int) -> tuple[float, float]:
    """Return a 95% interval that is valid at every look (Jennison and Turnbull 1989); with one look the usual one."""
    if len(looks) == 1 or np.isnan(estimate.ci95[0]):
        return estimate.ci95
    tail = boundaries(looks, ALPHA / 2)[number]
    if estimate.rare is not None and (estimate.note or not estimate.se > 0):
        return estimate.rare.limits(max(tail, 1e-12))
    if tail <= 0:
        return (np.nan, np.nan)
    low, high = student_interval(estimate.value, estimate.se, estimate.df, tail)
    return (max(low, -1.0), min(high, 1.0)) if estimate.rare is not None else (low, high)
