"""Differences in two scopes: closed forms, SciPy and statsmodels, and simulated studies whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from steerdec.benchmarks.stats.comparisons import (
    PROBLEMS_LIKE_THESE,
    SCOPES,
    THESE_PROBLEMS,
    difference,
    equivalence_p,
    minimum_detectable_effect,
)
from steerdec.benchmarks.stats.estimators import Counts, mean_over_problems, student
from steerdec.common.multiplicity import holm

STUDIES = 2000  # coverage of a right interval has standard error .005: .93 to .97 is 4 of them to either side


def counts(correct, graded):
    correct = np.asarray(correct)
    return Counts(correct, np.broadcast_to(np.asarray(graded), correct.shape))


def test_both_scopes_by_hand():
    # Differences .5, 0, .25, 0: mean .1875, sum of squared deviations .171875, so sd^2 = .0572917 and
    # se = sqrt(.0572917 / 4) = .1196784; t(.975, 3) = 3.1824463.
    arm, against = counts([4, 3, 2, 1], 4), counts([2, 3, 1, 1], 4)
    like = difference(arm, against, PROBLEMS_LIKE_THESE)
    assert like.value == 0.1875
    assert like.se == pytest.approx(0.1196784, abs=1e-7)
    assert like.ci95 == pytest.approx((-0.1933699, 0.5683699), abs=1e-6)
    # p (1-p) / 3 by stratum: 0, .0625, .0833, .0625 and .0833, .0625, .0625, .0625; their sum is 23/48 = .4791667.
    # se = sqrt(23/48) / 4; df = (23/48)^2 / (sum of squares / 3) = .2296007 / .0111400 = 20.6104.
    these = difference(arm, against, THESE_PROBLEMS)
    assert these.value == 0.1875
    assert these.se == pytest.approx(np.sqrt(23 / 48) / 4)
    assert these.df == pytest.approx(20.6104, abs=1e-4)
    assert these.ci95[1] == pytest.approx(0.1875 + scipy.stats.t.ppf(0.975, these.df) * these.se)
    assert these.p == pytest.approx(2 * scipy.stats.t.sf(0.1875 / these.se, these.df))


def test_problems_like_these_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    arm, against = counts(rng.binomial(16, 0.6, 30), 16), counts(rng.binomial(32, 0.5, 30), 32)
    expected = scipy.stats.ttest_rel(arm.accuracy, against.accuracy)
    found = difference(arm, against, PROBLEMS_LIKE_THESE)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_these_problems_has_one_problem_as_welchs_t_test():
    # One problem, two samples of zeros and ones: Welch's statistic and Satterthwaite's degrees of freedom.
    a, b = np.repeat([1.0, 0.0], [7, 3]), np.repeat([1.0, 0.0], [4, 10])
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    found = difference(counts([7], [10]), counts([4], [14]), THESE_PROBLEMS)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.df == pytest.approx(expected.df)


@pytest.mark.parametrize("scope", SCOPES)
def test_swapping_the_arms_changes_the_sign_and_nothing_else(scope):
    a, b = counts([4, 3, 2, 1], 4), counts([2, 7, 1, 1], 8)
    one, other = difference(a, b, scope), difference(b, a, scope)
    assert one.value == -other.value
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("scope", SCOPES)
def test_every_problem_weighs_the_same_whatever_its_number_of_samples(scope):
    arm, against = counts([6, 50], [8, 100]), counts([1, 25], [2, 100])
    assert difference(arm, against, scope).value == pytest.approx(((0.75 - 0.5) + (0.5 - 0.25)) / 2)
    assert difference(arm, counts([1, 100], [2, 100]), scope).value == pytest.approx((0.25 - 0.5) / 2)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_problem_ungraded_in_one_arm_drops_out_and_is_counted(scope):
    full = difference(counts([4, 3, 1], 4), counts([2, 3, 2], 4), scope)
    found = difference(counts([4, 0, 3, 1, 4], [4, 0, 4, 4, 4]), counts([2, 3, 3, 2, 0], [4, 4, 4, 4, 0]), scope)
    assert (found.n_problems, found.dropped) == (3, 2)
    assert (found.value, found.ci95, found.p) == (full.value, full.ci95, full.p)


@pytest.mark.parametrize("scope", SCOPES)
def test_no_shared_problem_gives_nothing_but_a_reason(scope):
    found = difference(counts([0, 1], [0, 2]), counts([1, 0], [2, 0]), scope)
    assert np.isnan([found.value, found.se, *found.ci95, found.p, equivalence_p(found, 0.02)]).all()
    assert found.note


def test_one_problem_is_enough_for_itself_and_not_for_others():
    arm, against = counts([7], 8), counts([2], 8)
    assert np.isfinite(difference(arm, against, THESE_PROBLEMS).ci95).all()
    like = difference(arm, against, PROBLEMS_LIKE_THESE)
    assert like.value == 0.625
    assert np.isnan(like.ci95).all()


def test_a_single_sample_gets_the_largest_variance_there_is():
    found = difference(counts([1, 0, 1], 1), counts([0, 0, 1], 1), THESE_PROBLEMS)
    assert found.se == pytest.approx(np.sqrt(6 * 0.25) / 3)
    assert found.df == np.inf


@pytest.mark.parametrize(("correct", "p"), [([4, 0, 4], 1.0), ([4, 4, 4], np.nan)])
def test_sampling_noise_that_cannot_be_seen_is_said_to_be_unknown(correct, p):
    found = difference(counts(correct, 4), counts([4, 0, 4], 4), THESE_PROBLEMS)
    assert found.se == 0.0
    assert np.isnan(found.ci95).all()
    assert found.p == pytest.approx(p, nan_ok=True)
    assert "not known" in found.note


def _study(rng, n_problems, k, effect, effect_sd):
    """Accuracies that stay inside (0, 1), so that the mean effect over all problems is exactly `effect`."""
    p = 0.2 + 0.55 * rng.beta(0.4, 0.4, n_problems)
    shifted = p + effect + effect_sd * np.sqrt(3) * rng.uniform(-1, 1, n_problems)
    return Counts(rng.binomial(k, shifted), np.full(n_problems, k)), Counts(rng.binomial(k, p), np.full(n_problems, k))


def _pooled_interval(arm, against):
    """The naive one: every sample as if from its own problem."""
    p, n = np.array([[c.correct.sum(), c.graded.sum()] for c in (arm, against)]).T
    p = p / n
    half = 1.96 * np.sqrt(np.sum(p * (1 - p) / n))
    return p[0] - p[1] - half, p[0] - p[1] + half


@pytest.mark.parametrize("n_problems", [30, 60])
def test_problems_like_these_covers_a_planted_effect_and_pooling_does_not(n_problems):
    rng = np.random.default_rng([1, n_problems])
    effect, hits, naive = 0.03, 0, 0
    for _ in range(STUDIES):
        arm, against = _study(rng, n_problems, 32, effect, effect_sd=0.1)
        low, high = difference(arm, against, PROBLEMS_LIKE_THESE).ci95
        hits += low <= effect <= high
        low, high = _pooled_interval(arm, against)
        naive += low <= effect <= high
    assert 0.93 <= hits / STUDIES <= 0.97
    assert naive / STUDIES < 0.92


@pytest.mark.parametrize("n_problems", [30, 60])
@pytest.mark.parametrize("k", [4, 32])
def test_these_problems_covers_the_effect_on_fixed_problems_and_pooling_does_not(n_problems, k):
    rng = np.random.default_rng([2, n_problems, k])
    p = rng.beta(0.3, 0.3, n_problems)
    raised = np.clip(p + rng.uniform(-0.1, 0.2, n_problems), 0, 1)
    effect, hits, naive = float(np.mean(raised - p)), 0, 0
    for _ in range(STUDIES):
        arm = Counts(rng.binomial(k, raised), np.full(n_problems, k))
        against = Counts(rng.binomial(k, p), np.full(n_problems, k))
        low, high = difference(arm, against, THESE_PROBLEMS).ci95
        hits += low <= effect <= high
        low, high = _pooled_interval(arm, against)
        naive += low <= effect <= high
    assert 0.93 <= hits / STUDIES <= 0.97
    assert naive / STUDIES > 0.98


@pytest.mark.parametrize("scope", SCOPES)
def test_two_equal_arms_differ_at_the_nominal_rate(scope):
    rng = np.random.default_rng(4)
    p_values = np.array([difference(*_study(rng, 40, 16, 0.0, 0.0), scope).p for _ in range(STUDIES)])
    assert 0.03 <= np.mean(p_values < 0.05) <= 0.07
    assert scipy.stats.kstest(p_values, "uniform").statistic < 0.05


def test_holm_by_hand():
    # .01 x 3 = .03; .02 x 2 = .04; .03 x 1 = .03, raised to .04 so that the order is kept.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_holm_is_statsmodels(n):
    p_values = list(np.random.default_rng(n).uniform(0, 0.3, n) ** 2)
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert holm(p_values) == pytest.approx(list(expected))


def test_a_claim_that_could_not_be_tested_still_counts_for_holm():
    adjusted = holm([0.01, np.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.03)
    assert np.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.08)


@given(
    st.lists(st.floats(-0.2, 0.2).map(lambda x: round(x, 3)), min_size=3, max_size=30).filter(lambda v: np.ptp(v) > 0)
)
def test_equivalence_is_statsmodels_two_one_sided_tests(values):
    expected = DescrStatsW(np.array(values)).ttost_mean(-0.02, 0.02)[0]
    assert equivalence_p(mean_over_problems(values), 0.02) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_equivalence_is_a_90_percent_interval_inside_delta():
    rng = np.random.default_rng(6)
    for _ in range(300):
        estimate = student(rng.normal(0, 0.02), 0.01, 20.0, 21, 0)
        half = scipy.stats.t.ppf(0.95, 20) * estimate.se
        inside = abs(estimate.value) + half < 0.02
        assert (equivalence_p(estimate, 0.02) < 0.05) == inside


def test_identical_arms_are_equivalent_only_if_enough_problems_say_so():
    same = [equivalence_p(mean_over_problems([0.0] * n), 0.02) for n in (60, 149)]
    assert same == pytest.approx([0.98**60, 0.98**149])
    assert same[0] > 0.05 > same[1]
    assert equivalence_p(mean_over_problems([0.01] * 200), 0.02) == 1.0


@pytest.mark.parametrize("delta", [0.0, -0.02, 1.0, 2.0, np.nan])
def test_a_delta_that_is_no_fraction_is_refused(delta):
    with pytest.raises(ValueError, match="delta is"):
        equivalence_p(mean_over_problems([0.1, 0.2]), delta)


@pytest.mark.parametrize("n", [3, 5, 30, 1000])
def test_minimum_detectable_effect_has_80_percent_power(n):
    sd = 0.1
    effect = minimum_detectable_effect(sd / np.sqrt(n), n - 1)
    assert TTestPower().power(effect / sd, n, 0.05) == pytest.approx(0.8, abs=1e-4)


def test_minimum_detectable_effect_falls_with_the_degrees_of_freedom():
    found = [minimum_detectable_effect(1.0, df) for df in [*np.exp(np.linspace(0, 14, 800)), np.inf]]
    assert np.all(np.diff(found) < 1e-6)
    assert found[-1] == pytest.approx(2.801585, abs=1e-5)


@pytest.mark.parametrize("n", [2, 12])
def test_minimum_detectable_effect_is_seen_in_80_percent_of_studies(n):
    values = np.random.default_rng(9).normal(minimum_detectable_effect(1 / np.sqrt(n), n - 1), 1.0, (200_000, n))
    assert np.mean(scipy.stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.004)


def test_minimum_detectable_effect_of_many_samples_is_2_8_standard_errors():
    assert minimum_detectable_effect(0.01, np.inf) == pytest.approx(0.01 * (1.959964 + 0.841621), rel=1e-6)


@pytest.mark.parametrize("se", [0.0, np.nan])
def test_minimum_detectable_effect_without_a_standard_error_is_unknown(se):
    assert np.isnan(minimum_detectable_effect(se, 10))
