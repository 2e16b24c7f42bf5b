"""Judge whether the instrument is valid: steering at the base temperatures (A/A) must not change the baseline. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steerdec.records.summary import InstrumentVerdict

from ..stats.comparisons import DifferenceEstimate, equivalence_p, excluded_bias
from ..stats.estimators import ALPHA, Counts, mean_over_problems
from .wording import points, probability

SEVERITY: tuple[InstrumentVerdict, ...] = ("valid", "not shown", "unchecked", "invalid")


@dataclass(frozen=True)
class Instrument:
    """`bias`: any larger bias of A/A would have been seen (a fraction); 0 where all texts are equal."""

    verdict: InstrumentVerdict
    reason: str
    bias: float = math.nan


def judge_instrument(identity: Counts, floor: Counts, accuracy: DifferenceEstimate, delta: float) -> Instrument:
    """Return whether A/A is shown equal to the baseline, shown different, or neither.

    valid: all texts are equal; or some differ, no more often than plain requests repeated with the same seeds, and the
    scores, paired by seed, are equal within delta (p < .05).

    invalid: texts differ although the engine is deterministic, or more often than the engine alone makes them differ
    (one-sided, 2.5%); or the score differs (p < .025). Together the two alarms are false in 5% of sound instruments.

    not shown: anything else. The reason has the smallest bias that the run would have seen.

    Args:
        identity: by problem, the A/A samples that differ from the baseline's of the same seed (`correct` holds the
            number that differ) out of those compared (`graded`).
        floor: the same for the repeated baseline; no comparisons if a run has none.
        accuracy: A/A minus baseline on these problems, paired by seed.
    """
    pairs, differing = int(identity.graded.sum()), int(identity.correct.sum())
    if pairs == 0:
        return Instrument("unchecked", "no A/A sample has the same seed as a baseline sample")
    share = f"A/A differs from the baseline in {differing} of {pairs} texts"
    if differing == 0:
        return Instrument("valid", f"A/A gave the baseline's text in all {pairs} pairs", 0.0)
    bias = excluded_bias(accuracy)
    floor_pairs, floor_differing = int(floor.graded.sum()), int(floor.correct.sum())
    if floor_pairs == 0:
        reason = f"{share}, and no arm repeats the baseline to show whether the engine does so too"
        return Instrument("invalid", reason, bias)
    both = f"{share}, the baseline repeated in {floor_differing} of {floor_pairs}"
    if floor_differing == 0:
        return Instrument("invalid", f"{both}: the engine is deterministic, so steering changed them", bias)
    excess = mean_over_problems(identity.accuracy - floor.accuracy)
    if math.isnan(excess.value):
        return Instrument("invalid", f"{both}, on other problems: how often the engine does so here is not known", bias)
    # Not "p < ALPHA", here and below: where p is not known, the doubt counts against the instrument.
    if excess.value > 0 and not excess.p >= ALPHA:
        return Instrument("invalid", f"{both}: more often than the engine alone (p {probability(excess.p / 2)})", bias)
    if abs(accuracy.value) > 0 and not accuracy.p >= ALPHA / 2:
        scores = f"A/A scores {points(accuracy.value)} points (p {probability(accuracy.p)})"
        return Instrument("invalid", f"{both}, but {scores}", bias)
    usual = f"{both}: no more often than the engine alone"
    p = equivalence_p(accuracy, delta)
    if p < ALPHA:
        equal = f"the scores are equal within ±{100 * delta:g} points (p {probability(p)})"
        return Instrument("valid", f"{usual}, and {equal}", bias)
    size = f"of up to {100 * bias:.1f} points" if math.isfinite(bias) else "of any size"
    unseen = f"a bias {size} is not excluded, and to be shown equal it has to be within ±{100 * delta:g}"
    return Instrument("not shown", f"{usual}, but {unseen}", bias)
