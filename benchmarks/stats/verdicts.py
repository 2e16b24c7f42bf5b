"""Plain verdicts: on a claim, on place against dose, and on the instrument itself. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from .comparisons import equivalence_p, minimum_detectable_effect
from .estimators import ALPHA, Counts, Estimate, mean_over_problems

Direction = Literal["greater", "less"]
Verdict = Literal["holds", "fails", "undecided"]
InstrumentVerdict = Literal["valid", "invalid", "unchecked"]

SATURATED = 0.9  # share of differing texts above which texts tell arms apart no longer


@dataclass(frozen=True)
class Claim:
    """Fixed before the run: `arm` scores greater (or less) than `against`."""

    id: str
    statement: str
    arm: str
    against: str
    direction: Direction


@dataclass(frozen=True)
class Ruling:
    id: str
    statement: str
    verdict: Verdict
    reason: str
    reversed: bool = False  # it fails because there is an effect the other way round


@dataclass(frozen=True)
class Instrument:
    verdict: InstrumentVerdict
    reason: str


def judge(claim: Claim, estimate: Estimate, p_holm: float, delta: float) -> Ruling:
    """The verdict on one claim.

    holds: the Holm-adjusted two-sided p is below .05 and the difference has the claimed sign, however small it is.
    fails: two one-sided tests place the difference within +-delta, or the 95% interval is wholly on the wrong side.
        Without an interval, where every problem shows the same difference, its exact sign-flip p stands for it. None of
        these tests is corrected for the number of claims.
    undecided: anything else; the reason then gives the smallest effect the run could see.
    """
    sign = 1.0 if claim.direction == "greater" else -1.0
    claimed, p_equivalence = sign * estimate.value > 0, equivalence_p(estimate, delta)
    within = f"within ±{100 * delta:g} points (two one-sided tests, p {_p(p_equivalence)})"
    reversed_effect = bool(estimate.p < ALPHA and not claimed)
    verdict: Verdict = "undecided"
    if p_holm < ALPHA and claimed:
        verdict = "holds"
        remark = f"yet it is {within}" if p_equivalence < ALPHA else ""
    elif p_equivalence < ALPHA:
        verdict, remark = "fails", within
    elif reversed_effect:
        no_interval = math.isnan(estimate.ci95[0])
        every_problem = f"every problem differs the other way (exact sign-flip p {_p(estimate.p)})"
        verdict = "fails"
        remark = every_problem if no_interval else "the whole interval lies on the other side than claimed"
    else:
        mde = minimum_detectable_effect(estimate.se, estimate.df)
        remark = f"the smallest effect seen with 80% power is {100 * mde:.1f} points" if math.isfinite(mde) else ""
    parts = (_difference(claim, estimate, p_holm), remark, estimate.note)
    return Ruling(claim.id, claim.statement, verdict, "; ".join(part for part in parts if part), reversed_effect)


def _difference(claim: Claim, estimate: Estimate, p_holm: float) -> str:
    pair = f"{claim.arm} − {claim.against}"
    if math.isnan(estimate.value):
        return f"{pair} cannot be computed"
    text = f"{pair} is {_points(estimate.value)} points"
    low, high = estimate.ci95
    if not math.isnan(low):
        text += f", 95% CI [{_points(low)}, {_points(high)}]"
    if not math.isnan(p_holm):
        text += f", Holm-adjusted p {_p(p_holm)}"
    text += f", {estimate.n_problems} problem{'' if estimate.n_problems == 1 else 's'}"
    return text + (f" ({estimate.dropped} left out, nothing graded in an arm)" if estimate.dropped else "")


def place_or_dose(effect: Ruling, place: Ruling, elsewhere: str, borrowed_from: str = "") -> tuple[Ruling, Ruling]:
    """Two claims that combine two: "place, not dose" and its opposite, "dose, not place".

    `effect` says that an arm differs from the baseline, `place` that one does from `elsewhere`, an arm that
    changes the mean entropy as much at other tokens. Each combined claim is an intersection-union test (Berger 1982)
    and errs no more often than the weaker of its two. "Place, not dose" takes two claims that hold, both corrected.
    "Dose, not place" takes one that holds and one that fails, and to fail is an uncorrected 5% test: see `judge`.

    Args:
        borrowed_from: the arm of `effect` where it is not the one that `elsewhere` is compared with. Its dose is
            another, as a rule a larger one. Two small doses are alike whatever the large one does, so a failed
            `place` then decides nothing. One that holds still counts: dose alone gives equal scores at any equal dose.
    """
    both = f"{effect.id} {effect.verdict}, {place.id} {place.verdict}"
    shown: Verdict = "undecided" if borrowed_from and place.verdict == "fails" else place.verdict
    if effect.verdict == "holds":
        words = {
            "holds": "place, not dose",
            "fails": "entropy dose, not place",
            "undecided": "an effect, but place and dose cannot be told apart",
        }[shown]
        if borrowed_from and place.verdict == "holds":
            words += f", at another dose than that of {borrowed_from}"
        elif shown != place.verdict:
            words += (
                f", for {elsewhere} has another dose than {borrowed_from}, as a rule a smaller one: "
                f"that it does as much as its match, or more, says nothing about {borrowed_from}"
            )
    elif effect.reversed:
        words = "the effect runs the other way than claimed, so the claim about its cause has nothing to stand on"
    else:
        words = "no such effect to explain" if effect.verdict == "fails" else "no effect shown, so none to explain"
    reason = f"{words}: {both}"
    by_place = Ruling(
        f"place-not-dose:{place.id}",
        f"The effect comes from the place of the steering: the same entropy elsewhere ({elsewhere}) does not do it.",
        _and(effect.verdict, shown),
        reason,
    )
    by_dose = Ruling(
        f"dose-not-place:{place.id}",
        f"The effect comes from the entropy dose: the same entropy elsewhere ({elsewhere}) does as much.",
        _and(effect.verdict, _not(shown)),
        reason,
    )
    return by_place, by_dose


def _and(a: Verdict, b: Verdict) -> Verdict:
    if "fails" in (a, b):
        return "fails"
    return "holds" if a == b == "holds" else "undecided"


def _not(verdict: Verdict) -> Verdict:
    opposite: dict[Verdict, Verdict] = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    return opposite[verdict]


def judge_instrument(identity: Counts, floor: Counts, accuracy: Estimate) -> Instrument:
    """Whether steering at the base temperatures (A/A) leaves the baseline as it is.

    If some texts differ, the engine itself may be the cause: then A/A must differ no more often than `floor`, plain
    requests repeated with the same seeds. Two tests share a false alarm rate of 5%: more differing texts (Student
    over problems, one-sided) and another accuracy.

    Args:
        identity: by problem, the A/A samples that differ from the baseline's of the same seed (`correct` holds the
            number that differ) out of those compared (`graded`).
        floor: the same for the repeated baseline; nothing compared where a run has none.
        accuracy: A/A minus baseline, these problems.
    """
    pairs, differing = int(identity.graded.sum()), int(identity.correct.sum())
    if pairs == 0:
        return Instrument("unchecked", "no A/A sample stands beside a baseline sample of the same seed")
    share = f"A/A differs from the baseline in {differing} of {pairs} texts"
    if differing == 0:
        return Instrument("valid", f"A/A gave the baseline's text in all {pairs} pairs")
    floor_pairs, floor_differing = int(floor.graded.sum()), int(floor.correct.sum())
    if floor_pairs == 0:
        return Instrument("invalid", f"{share}, and no arm repeats the baseline to show whether the engine does so too")
    both = f"{share}, the baseline repeated in {floor_differing} of {floor_pairs}"
    if floor_differing == 0:
        return Instrument("invalid", f"{both}: the engine is deterministic, so steering changed them")
    excess = mean_over_problems(identity.accuracy - floor.accuracy)
    if math.isnan(excess.value):
        return Instrument("invalid", f"{both}, on other problems: how often the engine does so here is not known")
    # Not "p < ALPHA", here and below: where p is not known, the doubt counts against the instrument.
    if excess.value > 0 and not excess.p >= ALPHA:
        return Instrument("invalid", f"{both}: more often than the engine alone (p {_p(excess.p / 2)})")
    if abs(accuracy.value) > 0 and not accuracy.p >= ALPHA / 2:
        return Instrument("invalid", f"{both}, but A/A scores {_points(accuracy.value)} points (p {_p(accuracy.p)})")
    saturated = floor_differing > SATURATED * floor_pairs
    caveat = "; texts nearly always differ, so only the score is a check" if saturated else ""
    return Instrument("valid", f"{both}: no more often than the engine alone{caveat}")


def voided(ruling: Ruling) -> Ruling:
    """The same ruling made with an invalid instrument: nothing is decided."""
    return replace(ruling, verdict="undecided", reason=f"the instrument is invalid; {ruling.reason}")


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _p(p: float) -> str:
    if math.isnan(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
