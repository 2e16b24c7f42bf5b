"""The rows of a summary without a decision: single arms, and the descriptive analyses of a pair or a dose family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steerdec.records.doses import ArmDose
from steerdec.records.summary import (
    ArmSummary,
    Comparison,
    Difference,
    Heterogeneity,
    Mediators,
    Population,
    Stratum,
    Trend,
)
from steerdec.records.summary import Contrast as ContrastSummary

from ..stats import comparisons, metrics, secondary
from ..stats import estimators as stats
from ..stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES, THESE_PROBLEMS
from ..stats.dose_error import DoseError
from ..stats.estimators import Counts, Estimate, Floats
from ..stats.evidence import evidence
from ..stats.pairing import pair_up
from ..stats.tally import BOX_INDEX, MISSING, Bools, Tally
from .expectations import Contrast, Design, Family
from .judging import Compared
from .run_data import RunData
from .verdict import Corrected

METHODS = {
    "avg_at_k": "mean over problems of the share correct; 95% Student interval over problems (exact at 0 and 1)",
    "pass_at_k": "unbiased, 1 - C(n-c,k)/C(n,k), over the problems with at least k graded samples",
    "maj_at_k": "most frequent answer; no answer, no vote; ties go to the answer given first (lowest sample index)",
    "comparisons": "over the (problem, sample) that both arms have graded",
    THESE_PROBLEMS: "the problems fixed; variance of the seed-paired differences within problems (of independent arms "
    "where the seeds differ), Satterthwaite degrees of freedom; limits for rare events where fewer than ten differ",
    PROBLEMS_LIKE_THESE: "Student t over per-problem differences, or over groups of problems; limits for rare events "
    "where fewer than ten problems differ; decides the claims",
    "p_holm": "two-sided, adjusted for the planned looks, then by Holm over all claims, within a population",
    "p_equivalence": "two one-sided tests against plus and minus delta, by Student's t and rare events; the larger p",
    "bounds": "the difference with all ungraded samples wrong in one arm and right in the other (Manski)",
    "dose_error": "where doses were matched, (slope^2 + its variance) (mismatch^2 + its variance) is added to the "
    "variance; the slope is the matched arm's own effect over its dose",
    "dose_nats, kl_nats": "change of the mean entropy, and mean KL(steered || plain), both per token of the baseline's "
    "text, from the calibration",
    "looks": "error spent by the function of Lan and DeMets that resembles O'Brien and Fleming's bounds",
    "mde": "smallest true difference seen with 80% power at two-sided 5%, before Holm",
    "heterogeneity": "variance between problems beyond the sampling noise, chi-squared interval; shrunken effects",
    "trends": "per-problem least-squares slope over temperature, Student over problems; the baseline is dose 0",
    "contrasts": "paired Student t over per-problem differences of two differences; not corrected, decides no claim",
    "strata": "problems sorted by the even-numbered baseline samples, compared on the odd-numbered of both arms",
    "mediators": "Kitagawa's two parts of the difference, and its intercept against the log ratio of lengths",
    "branching": "a tree against n plain samples of the baseline, n = mean tokens of a tree / mean tokens of a sample "
    "over all problems; unbiased pass@m and majority of m, interpolated; percentile bootstrap over problems or groups",
    "ungraded": "counted, left out of estimates; every p is the largest of three, with them left out, wrong, and right",
}


def arm_row(data: RunData, name: str, counts: Counts, needed: bool) -> ArmSummary:
    """Return the row of an arm; `needed`: a claim, or the description of the run, still needs samples of it."""
    tally = data.tally
    own = tally.of(name)
    unmade = data.samples * len(tally.problems) - int(own.sum())
    answered, told = own & ~tally.failed, own & (tally.forks != MISSING) & (tally.tokens != MISSING)
    k = int(tally.by_problem(own).max(initial=0))
    passed = {at: stats.pass_at_k(counts, at) for at in _powers_of_two_and(k)}
    average = stats.avg_at_k(counts)
    applied = data.applied.get(name)
    shift = applied.shift if applied else None
    control = data.design.controls.get(name)
    changed = None if control is None else tally.differing(name, control)
    independent = name not in data.design.branches  # only then is pass@k or maj@k one of so many samples
    return ArmSummary(
        n_problems=average.n_problems,
        k=k,
        avg_at_k=average.value,
        avg_at_k_ci95=average.ci95,
        avg_at_k_note=average.note,
        pass_at_k=_mean(passed[k]) if k and independent else None,
        pass_at_k_problems=int(np.sum(~np.isnan(passed[k]))) if k and independent else 0,
        pass_at={str(at): _mean(values) for at, values in passed.items()} if independent else {},
        maj_at_k=_mean(_majorities(tally, own & tally.graded)) if independent else None,
        truncation_rate=_mean(tally.truncated[answered].astype(np.float64)),
        unboxed_rate=_unboxed(tally, own),
        mean_tokens=_mean(tally.tokens[answered & (tally.tokens != MISSING)].astype(np.float64)),
        fork_rate=_ratio(tally.forks[told].sum(), tally.tokens[told].sum()),
        mean_entropy_nats=_mean_over_tokens(tally, own, tally.entropy_nats),
        mean_sampled_entropy_nats=_mean_over_tokens(tally, own, tally.sampled_entropy_nats),
        samples=int(own.sum()),
        missing=unmade if needed else 0,
        not_needed=0 if needed else unmade,
        ungraded=int(np.sum(own & ~tally.graded)),
        failed_requests=int(np.sum(own & tally.failed)),
        tokens_per_correct=metrics.arm_value(data.tables[name], "tokens per correct") if independent else None,
        **_dose_fields(data.dose_matches.doses.get(name)),
        entropy_shift_nats=shift.value if shift else None,
        entropy_shift_ci95=shift.ci95 if shift else None,
        texts_changed=_ratio(int(changed.correct.sum()), int(changed.graded.sum())) if changed else None,
        applied=applied.status if applied else None,
        applied_reason=applied.reason if applied else "",
    )


def _unboxed(tally: Tally, own: Bools) -> float:
    """Of the complete answers whose grade says so, the share without a box; NaN for other forms of problems."""
    known = own & ~tally.truncated & (tally.box != BOX_INDEX["unknown"])
    return _mean((tally.box[known] == BOX_INDEX["none"]).astype(np.float64))


def _dose_fields(dose: ArmDose | None) -> dict[str, Any]:
    if dose is None:
        return {}
    return dose.model_dump(include={"dose_nats", "dose_ci95", "kl_nats", "kl_ci95"})


def _mean_over_tokens(tally: Tally, own: Bools, nats: Floats) -> float:
    """Return the mean of `nats` [n_samples] weighted by tokens, without the samples that report none."""
    heard = own & ~np.isnan(nats) & (tally.tokens > 0)
    return _ratio(nats[heard] @ tally.tokens[heard], tally.tokens[heard].sum())


def _powers_of_two_and(k: int) -> list[int]:
    return sorted({2**i for i in range(k.bit_length())} | ({k} if k else set()))


def _majorities(tally: Tally, rows: Bools) -> Floats:
    """Return 1 or 0 for every problem with graded samples; the rows of a tally are sorted by problem, then sample."""
    at = np.flatnonzero(rows)
    groups = np.split(at, np.flatnonzero(np.diff(tally.problem[at])) + 1) if len(at) else []
    found = []
    for group in groups:
        answers = [None if answer == MISSING else answer for answer in tally.answer[group].tolist()]
        found.append(float(stats.majority_is_correct(answers, tally.correct[group].tolist())))
    return np.array(found)


def comparison_rows(data: RunData, claimed: Mapping[tuple[Compared, Population], Corrected]) -> tuple[Comparison, ...]:
    """Return every pair of the design in both populations, by avg@k, on all available samples."""
    return tuple(
        _comparison(data, (*pair, "avg@k"), population, claimed) for pair in data.design.pairs for population in SCOPES
    )


def other_metric_rows(
    data: RunData, claimed: Mapping[tuple[Compared, Population], Corrected]
) -> tuple[Comparison, ...]:
    """Return the same pairs by every other metric."""
    return tuple(
        _comparison(data, (*pair, metric), population, claimed)
        for metric in metrics.METRICS[1:]
        for pair in data.design.pairs
        for population in SCOPES
    )


def _comparison(
    data: RunData,
    compared: Compared,
    population: Population,
    claimed: Mapping[tuple[Compared, Population], Corrected],
) -> Comparison:
    arm, against, metric = compared
    pair = pair_up(data.tables[arm], data.tables[against], groups=data.groups)
    delta = data.design.delta
    if metric not in metrics.SCORES:
        delta = metrics.RELATIVE_DELTA * metrics.arm_value(data.tables[against], metric)
    matching = data.dose_matches.error(data.tables, compared, population, groups=data.groups)
    found = evidence(pair, metric, population, delta if delta > 0 else 1e-9, matching)
    corrected = claimed.get((compared, population))
    return Comparison(
        arm=arm,
        baseline=against,
        scope=population,
        **vars(difference_of(found.estimate)),
        p_holm=min(corrected.greater, corrected.less) if corrected else None,
        p_equivalence=found.p_equal,
        mde=comparisons.minimum_detectable_effect(found.estimate.se, found.estimate.df),
        metric=metric,
        metric_k=metrics.pass_size(int(pair.common.sum(axis=1).max(initial=1))) if metric == "pass@k" else None,
        p_holm_equivalence=corrected.equal if corrected else None,
        pairs=found.pairs,
        paired_by_seed=pair.by_seed,
        ungraded_pairs=found.ungraded,
        bounds=found.bounds,
        bounds_ci95=found.bounds_ci95,
        **dose_error_fields(found.dose_error),
    )


def dose_error_fields(matching: DoseError | None) -> dict[str, Any]:
    """Return the fields of a summary that tell the error of dose matching, half widths of 95% intervals."""
    if matching is None:
        return {}
    off, nats = matching.ci95
    return {"dose_error": off, "dose_error_nats": nats}


def heterogeneity_row(data: RunData, arm: str, against: str) -> Heterogeneity:
    pair = pair_up(data.tables[arm], data.tables[against]).graded_only()
    found = secondary.variation(metrics.spread(pair, "avg@k"))
    effects = dict(zip(data.tally.problems, found.effects.tolist(), strict=True))
    return Heterogeneity(
        arm=arm, baseline=against, effect_sd=found.sd, effect_sd_ci95=found.ci95, p=found.p, effects=effects
    )


def trend_row(design: Design, family: Family, counts: Mapping[str, Counts]) -> Trend:
    arms = (design.baseline, *family.arms)
    slope = secondary.dose_trend((0.0, *family.doses), [counts[name] for name in arms])
    return Trend(family=family.name, arms=arms, doses=(0.0, *family.doses), **vars(difference_of(slope)))


def contrast_row(contrast: Contrast, counts: Mapping[str, Counts]) -> ContrastSummary:
    """Return (arm - its control) - (placebo - its control): what one replay's positions are worth over the other's."""
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
    """Return the mean tokens by problem, [n_problems]; NaN if no length is known."""
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
    """Return the mean without NaN values; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
