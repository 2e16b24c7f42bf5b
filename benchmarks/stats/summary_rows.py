"""The rows of a summary that need no decision: one arm, and the descriptive analyses of a pair or a dose family."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from steerdec.records.summary import ArmSummary, Difference, Mediators, Stratum, Trend
from steerdec.records.summary import Contrast as ContrastSummary

from . import comparisons, secondary
from . import estimators as stats
from .comparisons import PROBLEMS_LIKE_THESE, THESE_PROBLEMS
from .estimators import Counts, Estimate, Floats
from .expectations import Contrast, Design, Family
from .tally import MISSING, Bools, Tally

METHODS = {
    "avg_at_k": "mean over problems of the share correct; 95% Student interval over problems, the clusters",
    "pass_at_k": "unbiased, 1 - C(n-c,k)/C(n,k), over the problems with at least k graded samples",
    "maj_at_k": "most frequent answer; no answer, no vote; ties go to the answer given first (lowest sample index)",
    THESE_PROBLEMS: "stratified binomial standard error, the problems fixed; Satterthwaite degrees of freedom",
    PROBLEMS_LIKE_THESE: "paired Student t over per-problem differences; decides the claims",
    "p_holm": "Holm over the claimed pairs, two-sided, within a scope",
    "p_equivalence": "two one-sided t-tests against plus and minus delta, not corrected",
    "mde": "smallest true difference seen with 80% power at two-sided 5%, before Holm",
    "trends": "per-problem least-squares slope over temperature, Student over problems; the baseline is dose 0",
    "contrasts": "paired Student t over per-problem differences of two differences; not corrected, decides no claim",
    "strata": "problems sorted by the even-numbered baseline samples, compared on the odd-numbered of both arms",
    "mediators": "Kitagawa's two parts of the difference, and its intercept against the log ratio of lengths",
    "ungraded": "failed requests: counted, left out of accuracy, never taken as wrong",
}


def arm_row(tally: Tally, name: str, counts: Counts, planned: int) -> ArmSummary:
    own = tally.of(name)
    answered, told = own & ~tally.failed, own & (tally.forks != MISSING) & (tally.tokens != MISSING)
    k = int(tally.by_problem(own).max(initial=0))
    passed = {at: stats.pass_at_k(counts, at) for at in _powers_of_two_and(k)}
    average = stats.avg_at_k(counts)
    return ArmSummary(
        n_problems=average.n_problems,
        k=k,
        avg_at_k=average.value,
        avg_at_k_ci95=average.ci95,
        avg_at_k_note=average.note,
        pass_at_k=_mean(passed[k]) if k else None,
        pass_at_k_problems=int(np.sum(~np.isnan(passed[k]))) if k else 0,
        pass_at={str(at): _mean(values) for at, values in passed.items()},
        maj_at_k=_mean(_majorities(tally, own & tally.graded)),
        truncation_rate=_mean(tally.truncated[answered].astype(np.float64)),
        mean_tokens=_mean(tally.tokens[answered & (tally.tokens != MISSING)].astype(np.float64)),
        fork_rate=_ratio(tally.forks[told].sum(), tally.tokens[told].sum()),
        mean_entropy_nats=_mean_over_tokens(tally, own, tally.entropy_nats),
        mean_sampled_entropy_nats=_mean_over_tokens(tally, own, tally.sampled_entropy_nats),
        samples=int(own.sum()),
        missing=planned - int(own.sum()),
        ungraded=int(np.sum(own & ~tally.graded)),
        failed_requests=int(np.sum(own & tally.failed)),
    )


def _mean_over_tokens(tally: Tally, own: Bools, nats: Floats) -> float:
    """Of the samples' means `nats` [n_samples], weighted by their tokens; those not told are left out."""
    heard = own & ~np.isnan(nats) & (tally.tokens > 0)
    return _ratio(nats[heard] @ tally.tokens[heard], tally.tokens[heard].sum())


def _powers_of_two_and(k: int) -> list[int]:
    return sorted({2**i for i in range(k.bit_length())} | ({k} if k else set()))


def _majorities(tally: Tally, rows: Bools) -> Floats:
    """1 or 0 for every problem with graded samples. The rows of a tally are sorted by problem, then by sample."""
    at = np.flatnonzero(rows)
    groups = np.split(at, np.flatnonzero(np.diff(tally.problem[at])) + 1) if len(at) else []
    found = []
    for group in groups:
        answers = [None if answer == MISSING else answer for answer in tally.answer[group].tolist()]
        found.append(float(stats.majority_is_correct(answers, tally.correct[group].tolist())))
    return np.array(found)


def trend_row(design: Design, family: Family, counts: Mapping[str, Counts]) -> Trend:
    arms = (design.baseline, *family.arms)
    slope = secondary.dose_trend((0.0, *family.doses), [counts[name] for name in arms])
    return Trend(family=family.name, arms=arms, doses=(0.0, *family.doses), **vars(difference_of(slope)))


def contrast_row(contrast: Contrast, counts: Mapping[str, Counts]) -> ContrastSummary:
    """(arm - its control) - (placebo - its control): what the positions of one replay are worth over the other's."""
    own = comparisons.problem_differences(counts[contrast.arm], counts[contrast.control])
    elsewhere = comparisons.problem_differences(counts[contrast.placebo], counts[contrast.placebo_control])
    estimate = stats.mean_over_problems(own - elsewhere)
    mde = comparisons.minimum_detectable_effect(estimate.se, estimate.df)
    return ContrastSummary(**contrast._asdict(), scope=PROBLEMS_LIKE_THESE, **vars(difference_of(estimate)), mde=mde)


def strata_rows(tally: Tally, arm: str, against: str) -> list[Stratum]:
    even = tally.sample % 2 == 0
    sorting = tally.counts(against, even)
    strata = secondary.difficulty_strata(sorting, tally.counts(arm, ~even), tally.counts(against, ~even))
    return [Stratum(arm=arm, baseline=against, stratum=label, **vars(difference_of(found))) for label, found in strata]


def mediator_row(tally: Tally, counts: Mapping[str, Counts], arm: str, against: str) -> Mediators:
    parts = secondary.truncation_parts(counts[arm], _finished(tally, arm), counts[against], _finished(tally, against))
    ratio = np.log(_mean_tokens(tally, arm) / _mean_tokens(tally, against))
    differences = comparisons.problem_differences(counts[arm], counts[against])
    return Mediators(
        arm=arm,
        baseline=against,
        by_finishing=difference_of(parts.by_finishing),
        by_answers=difference_of(parts.by_answers),
        log_length_ratio=difference_of(stats.mean_over_problems(ratio)),
        at_equal_length=difference_of(secondary.difference_at_equal_length(differences, ratio)),
    )


def _finished(tally: Tally, arm: str) -> stats.Ints:
    return tally.by_problem(tally.of(arm) & tally.graded & (~tally.truncated | tally.correct))


def _mean_tokens(tally: Tally, arm: str) -> Floats:
    """By problem, NaN where no length is known; [n_problems]."""
    rows = tally.of(arm) & ~tally.failed & (tally.tokens > 0)
    total = np.bincount(tally.problem[rows], weights=tally.tokens[rows], minlength=len(tally.problems))
    lengths: Floats = np.full(len(total), np.nan)
    return np.divide(total, tally.by_problem(rows), out=lengths, where=total > 0)


def difference_of(estimate: Estimate) -> Difference:
    return Difference(
        diff=estimate.value,
        se=estimate.se,
        ci95=estimate.ci95,
        p=estimate.p,
        n_problems=estimate.n_problems,
        dropped_problems=estimate.dropped,
        note=estimate.note,
    )


def _mean(values: Floats) -> float:
    """NaN values left out; NaN of none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
