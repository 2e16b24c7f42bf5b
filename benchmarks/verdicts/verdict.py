"""Decide claims, and place against dose, from corrected p-values. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from steerdec.records.summary import Metric, Population, Verdict

from ..stats.comparisons import FEW, PROBLEMS_LIKE_THESE, DifferenceEstimate, minimum_detectable_effect
from ..stats.dose_error import DoseError
from ..stats.estimators import ALPHA
from ..stats.metrics import SCORES
from .wording import amount, interval, plural, probability

Direction = Literal["greater", "less"]


@dataclass(frozen=True)
class Claim:
    """A statement fixed before the run: `arm` is greater (or less) than `against` in `metric`."""

    id: str
    statement: str
    arm: str
    against: str
    direction: Direction
    metric: Metric = "avg@k"

    @property
    def compared(self) -> tuple[str, str, Metric]:
        return self.arm, self.against, self.metric


@dataclass(frozen=True)
class Ruling:
    id: str
    statement: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Corrected:
    """p-values of one difference corrected for all claims and looks.

    `greater`, `less`: two-sided p of "no difference", on the side the difference is on; 1 on the other. `equal`: p of
    "it is delta or more".
    """

    greater: float
    less: float
    equal: float


def verdict_of(direction: Direction, corrected: Corrected) -> Verdict:
    """Return what the corrected p-values say of a claim.

    holds: there is a difference, on the claimed side, however small.
    reversed: there is a difference, on the other side.
    no effect: the difference is within +-delta.
    undecided: anything else.
    """
    claimed, other = corrected.greater, corrected.less
    if direction == "less":
        claimed, other = other, claimed
    if claimed < ALPHA:
        return "holds"
    if other < ALPHA:
        return "reversed"
    return "no effect" if corrected.equal < ALPHA else "undecided"


def too_few(estimate: DifferenceEstimate, population: Population) -> str:
    """Return why there can be no verdict from so few problems; empty if there are enough."""
    if population != PROBLEMS_LIKE_THESE or estimate.clusters >= FEW:
        return ""
    what = plural(estimate.clusters, "problem")
    if estimate.clusters != estimate.n_problems:
        what = f"{plural(estimate.clusters, 'group')} of problems"
    return f"{what} cannot speak for problems like these; a verdict needs {FEW}"


def explain(
    claim: Claim,
    verdict: Verdict,
    estimate: DifferenceEstimate,
    corrected: Corrected,
    delta: float,
    matching: DoseError | None = None,
) -> str:
    """Return the numbers behind a verdict in one line."""
    score = claim.metric in SCORES
    name = "" if claim.metric == "avg@k" else f" in {claim.metric}"
    pair = f"{claim.arm} − {claim.against}{name}"
    if math.isnan(estimate.value):
        return "; ".join(part for part in (f"{pair} cannot be computed", estimate.note) if part)
    text = f"{pair} is {amount(estimate.value, score=score)}"
    low, high = estimate.ci95
    if not math.isnan(low):
        text += f", 95% CI {interval(low, high, score=score)}"
        if matching is not None and math.isfinite(matching.sd):
            off, nats = matching.ci95
            amount_off = f"±{100 * off:.2g} points" if score else f"±{off:.2g} tokens"
            text += f" (of which {amount_off} because doses are matched to ±{nats:.1g} nats)"
    p = min(corrected.greater, corrected.less)
    text += f", corrected p {probability(p)}, {plural(estimate.n_problems, 'problem')}"
    if estimate.dropped:
        text += f" ({estimate.dropped} left out, nothing graded in an arm)"
    margin = f"±{100 * delta:g} points" if score else f"±{delta:.1f} tokens"
    remark = ""
    if verdict == "undecided":
        mde = minimum_detectable_effect(estimate.se, estimate.df)
        if math.isfinite(mde):
            unit = f"{100 * mde:.1f} points" if score else f"{mde:.1f} tokens"
            remark = f"the smallest effect seen with 80% power is {unit}"
    elif verdict == "no effect":
        remark = f"within {margin} (two one-sided tests, corrected p {probability(corrected.equal)})"
    elif corrected.equal < ALPHA:
        remark = f"yet it is within {margin}"
    elif verdict == "reversed":
        remark = "the difference is on the other side than claimed"
    return "; ".join(part for part in (text, remark, estimate.note) if part)


def place_or_dose(effect: Ruling, place: Ruling, elsewhere: str, borrowed_from: str = "") -> tuple[Ruling, Ruling]:
    """Return two claims that combine two: "place, not dose" and its opposite, "dose, not place".

    `effect` says that an arm differs from the baseline, `place` that it differs from `elsewhere`, an arm that changes
    the mean entropy as much at other tokens. Each combined claim is an intersection-union test (Berger 1982) and errs
    no more often than the weaker of its two, and both are corrected. Neither is decided before the effect is.

    Args:
        borrowed_from: the arm of `effect` if it is not the one that `elsewhere` is compared with. Its dose is
            different, as a rule larger. Two small doses are alike whatever the large one does, so `place` with verdict
            no effect or reversed then decides nothing. A `place` that holds still counts: dose alone gives equal scores
            at any equal dose.
    """
    by_place, by_dose, words = _combine(effect.verdict, place.verdict, elsewhere, borrowed_from)
    reason = f"{words}: {effect.id} {effect.verdict}, {place.id} {place.verdict}"
    return (
        Ruling(
            f"place-not-dose:{place.id}",
            "The effect comes from the place of the steering: "
            f"the same entropy elsewhere ({elsewhere}) does not do it.",
            by_place,
            reason,
        ),
        Ruling(
            f"dose-not-place:{place.id}",
            f"The effect comes from the entropy dose: the same entropy elsewhere ({elsewhere}) does as much.",
            by_dose,
            reason,
        ),
    )


def _combine(effect: Verdict, place: Verdict, elsewhere: str, borrowed_from: str) -> tuple[Verdict, Verdict, str]:
    """Return the verdicts on "place, not dose" and "dose, not place", with their reasons."""
    if "not applied" in (effect, place):
        return "not applied", "not applied", "an arm was not steered as requested, so place and dose were not compared"
    if effect == "reversed":
        words = "the effect runs the other way than claimed, so the claim about its cause has nothing to stand on"
        return "reversed", "reversed", words
    if effect == "no effect":
        return "no effect", "no effect", "no such effect to explain"
    if effect == "undecided":
        return "undecided", "undecided", "no effect shown, so none to explain"
    if place == "undecided":
        return "undecided", "undecided", "an effect, but place and dose cannot be told apart"
    if place == "holds":
        words = "place, not dose"
        if borrowed_from:
            words += f", at another dose than that of {borrowed_from}"
        return "holds", "reversed", words
    if borrowed_from:
        words = (
            "an effect, but place and dose cannot be told apart, "
            f"for {elsewhere} has another dose than {borrowed_from}, as a rule a smaller one: "
            f"that it does as much as its match, or more, says nothing about {borrowed_from}"
        )
        return "undecided", "undecided", words
    return place, "holds", "entropy dose, not place"


def replaced(ruling: Ruling, verdict: Verdict, why: str) -> Ruling:
    """Return the ruling with another verdict, and that verdict's reason in front."""
    return replace(ruling, verdict=verdict, reason=f"{why}; {ruling.reason}")
