"""What an error in matching doses adds to a difference: against drawing it, and in studies where it is planted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, SCOPES, difference, spread_of_samples
from steerdec.benchmarks.stats.dose_error import HALF_WIDTH, DoseError, Mismatch, dose_error
from steerdec.benchmarks.stats.estimators import student
from steerdec.benchmarks.stats.rare import rare_parts
from steerdec.benchmarks.verdicts.summary import summarize
from tests.support.studies import Truth, write_study


def mismatch(effect: float, se: float, *, dose: float = 0.2, error: float = 0.0, error_se: float = 0.01) -> Mismatch:
    return Mismatch(dose, error, error_se, student(effect, se, 29, 30, 0))


@pytest.mark.parametrize(
    ("effect", "se", "error", "error_se"), [(0.1, 0.02, 0.0, 0.01), (0.0, 0.05, 0.02, 0.01), (-0.2, 0.01, -0.03, 0.0)]
)
def test_the_variance_is_that_of_slope_times_mismatch(effect: float, se: float, error: float, error_se: float) -> None:
    """Slowly: draw the slope and the mismatch, each as uncertain as it is."""
    rng = np.random.default_rng(0)
    slope = rng.normal(effect, se, 400_000) / 0.2
    product = slope * rng.normal(error, error_se, 400_000)
    found = mismatch(effect, se, error=error, error_se=error_se).variance
    assert found == pytest.approx(float(np.mean(product**2)), rel=0.02)


def test_arms_that_were_not_matched_have_no_such_error() -> None:
    assert dose_error([]) is None
    both = dose_error([mismatch(0.1, 1e-9), mismatch(0.2, 1e-9, dose=0.4)])
    assert both is not None
    assert both.sd == pytest.approx(math.hypot(0.005, 0.005))
    assert both.ci95 == pytest.approx((HALF_WIDTH * math.hypot(0.005, 0.005), HALF_WIDTH * math.hypot(0.01, 0.01)))


def test_without_a_dose_nothing_is_known_of_the_slope() -> None:
    found = dose_error([mismatch(0.1, 0.02, dose=0.0)])
    assert found is not None
    assert math.isnan(found.sd)


def test_the_limits_of_rare_events_widen_by_squares() -> None:
    values, weights = np.zeros(100), np.full(100, 0.01)
    values[:4] = 1.0
    parts = rare_parts(values, weights)
    wide = type(parts)(**{**vars(parts), "extra_sd": 0.05})
    for tail in (0.025, 0.005):
        z = -float(student(0.0, 1.0, np.inf, 9, 0).ci95[0]) if tail == 0.025 else 2.5758
        (low, high), (low_wide, high_wide) = parts.limits(tail), wide.limits(tail)
        assert 0.04 - low_wide == pytest.approx(math.hypot(0.04 - low, z * 0.05), rel=1e-4)
        assert high_wide - 0.04 == pytest.approx(math.hypot(high - 0.04, z * 0.05), rel=1e-4)
    assert parts.p_below(0.0) < wide.p_below(0.0)
    assert parts.p_above(0.1) < wide.p_above(0.1)


# Studies -----------------------------------------------------------------------------------------

SLOPE, DOSE = -1.5, 0.2  # of the others: 30 points lost at the dose


def covered(mismatch_nats: float, error_se: float, studies: int, *, carried: bool) -> float:
    """Share of 95% intervals of F - N that hold the difference at equal dose, whatever the matching missed.

    40 problems, 16 samples. The matched arm's dose is off by `mismatch_nats`; NaN: each study's calibration has its
    own error with standard deviation `error_se`, and knows no more than that.
    """
    hits = 0
    for seed in range(studies):
        rng = np.random.default_rng([seed, 7])
        off = rng.normal(0, error_se) if math.isnan(mismatch_nats) else mismatch_nats
        told = 0.0 if math.isnan(mismatch_nats) else rng.normal(off, error_se)
        p = rng.uniform(0.4, 0.7, 40)

        def arm(effect: float, p: Any = p, rng: Any = rng) -> Any:
            return (rng.random((40, 16)) < np.clip(p + effect, 0, 1)[:, None]).astype(float)

        forks, base, others = arm(0.05), arm(0.0), arm(SLOPE * (DOSE + off))
        effect = difference(spread_of_samples(others, base, by_seed=False, bounded=True), PROBLEMS_LIKE_THESE)
        error = dose_error([Mismatch(DOSE + told, told, error_se, effect)])
        assert error is not None
        spread = spread_of_samples(forks, others, by_seed=False, bounded=True)
        low, high = difference(spread, PROBLEMS_LIKE_THESE, error.sd if carried else 0.0).ci95
        hits += low <= 0.05 - SLOPE * DOSE <= high
    return hits / studies


def test_without_it_intervals_miss_and_with_it_they_cover() -> None:
    assert covered(math.nan, 0.03, 200, carried=False) < 0.8
    assert covered(math.nan, 0.03, 200, carried=True) >= 0.91


@pytest.mark.parametrize("planted", [-0.03, 0.0, 0.03])
def test_a_planted_mismatch_is_covered(planted: float) -> None:
    assert covered(planted, 0.015, 150, carried=True) >= 0.92


# Through samples.jsonl ---------------------------------------------------------------------------


def study(folder: Path, error_se: float | None) -> Any:
    """F-up against N-up, whose dose was matched to F-up's; F-up gains 25 points, N-up nothing."""
    write_study(Truth(40, 8, ("B", "F-up", "N-up"), effect=0.25), folder, seed=2)
    run = json.loads((folder / "run.json").read_text())
    arms = {arm["name"]: arm for arm in run["arms"]["arms"]}
    arms["N-up"] |= {"role": "matched", "matched": "F-up"}
    run["arms"]["claims"] = [
        {"id": "place", "statement": "Forks.", "arm": "F-up", "baseline": "N-up", "direction": "higher"}
    ]
    if error_se is not None:
        parts = [{"tokens": "forks", "temperature": 1.0}, {"tokens": "others", "temperature": 2.0}]
        dose = {"parts": parts, "dose_nats": 0.2, "dose_ci95": [0.1, 0.3], "kl_nats": 0.05, "kl_ci95": [0.04, 0.06]}
        run["doses"] = {"N-up": dose | {"matched": "F-up", "mismatch_nats": 0.0, "mismatch_se_nats": error_se}}
    (folder / "run.json").write_text(json.dumps(run))
    return summarize(folder)


def test_a_claim_says_what_its_matching_adds(tmp_path: Path) -> None:
    summary = study(tmp_path, 0.004)
    (claim,) = (claim for claim in summary.claims if claim.id == "place")
    assert claim.verdict == "holds"
    assert claim.dose_error_nats == pytest.approx(HALF_WIDTH * 0.004)
    assert claim.dose_error is not None
    assert f"(of which ±{100 * claim.dose_error:.2g} points because doses are matched to ±0.008 nats)" in claim.reason
    assert (summary.arms["N-up"].dose_nats, summary.arms["N-up"].kl_nats) == (0.2, 0.05)
    rows = {(row.arm, row.baseline, row.scope): row for row in summary.comparisons}
    for scope in SCOPES:
        assert rows["F-up", "N-up", scope].dose_error is not None
        assert rows["F-up", "B", scope].dose_error is None
    row = rows["F-up", "N-up", PROBLEMS_LIKE_THESE]
    assert claim.ci95 == row.ci95


def test_a_matching_far_off_leaves_the_claim_undecided(tmp_path: Path) -> None:
    sound, far = study(tmp_path, 0.004), study(tmp_path, 1.0)
    assert (sound.claims[0].verdict, far.claims[0].verdict) == ("holds", "undecided")
    narrow, wide = (summary.claims[0].ci95 or (0.0, 0.0) for summary in (sound, far))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_run_that_does_not_record_its_doses_says_so(tmp_path: Path) -> None:
    summary = study(tmp_path, None)
    assert summary.claims[0].dose_error is None
    assert summary.warnings == (
        "F-up − N-up: how well its doses are matched is not recorded, so the intervals take them as equal.",
    )


def test_half_widths_are_those_of_two_standard_deviations() -> None:
    assert DoseError(0.01, 0.002).ci95 == pytest.approx((0.0196, 0.00392), rel=1e-3)
