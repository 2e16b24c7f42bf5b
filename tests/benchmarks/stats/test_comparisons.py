"""Differences in two populations: closed forms, SciPy and statsmodels, and simulated samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from steerdec.benchmarks.stats.comparisons import (
    PROBLEMS_LIKE_THESE,
    SCOPES,
    THESE_PROBLEMS,
    Spread,
    difference,
    equivalence_p,
    excluded_bias,
    minimum_detectable_effect,
    spread_of_samples,
)
from steerdec.common.multiplicity import holm

STUDIES = 400  # coverage of a right interval has standard error .011: .91 to .99 is 3.6 of them to either side


def samples(right, k=4):
    """[n_problems, k] with the first `right[i]` samples of problem i right."""
    return (np.arange(k) < np.asarray(right)[:, None]).astype(float)


def of_samples(a, b, population, *, by_seed=True, bounded=True, groups=None):
    return difference(spread_of_samples(a, b, by_seed=by_seed, bounded=bounded, groups=groups), population)


def of_problems(values, *, bounded=False, groups=None):
    d = np.asarray(values, dtype=float)
    return difference(Spread(d, np.zeros(len(d)), np.ones(len(d)), None, bounded, groups), PROBLEMS_LIKE_THESE)


def test_independent_arms_by_hand():
    # p (1-p) / 3 by arm and problem: 0, .0625, .0833, .0625 and .0833, .0625, .0625, .0625; their sum is 23/48.
    a, b = samples([4, 3, 2, 1]), samples([2, 3, 1, 1])
    found = difference(spread_of_samples(a, b, by_seed=False, bounded=False), THESE_PROBLEMS)
    assert found.value == 0.1875
    assert found.se == pytest.approx(np.sqrt(23 / 48) / 4)


def test_arms_paired_by_seed_have_the_error_of_their_differences():
    # Problem 0: differences 0 0 1 1, variance 1/3; problem 1: 0; problem 2: 0 1 0 0, variance 1/4; problem 3: 0.
    a, b = samples([4, 3, 2, 1]), samples([2, 3, 1, 1])
    found = difference(spread_of_samples(a, b, by_seed=True, bounded=False), THESE_PROBLEMS)
    assert found.se == pytest.approx(np.sqrt((1 / 3 + 1 / 4) / 4) / 4)
    assert found.df == pytest.approx((1 / 3 + 1 / 4) ** 2 / ((1 / 9 + 1 / 16) / 3))
    assert of_samples(a, a, THESE_PROBLEMS).se == 0.0


def test_problems_like_these_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = (samples(rng.binomial(16, p, 30), 16) for p in (0.6, 0.5))
    expected = scipy.stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    found = of_samples(a, b, PROBLEMS_LIKE_THESE)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("by_seed", [True, False])
def test_swapping_the_arms_changes_the_sign_and_nothing_else(scope, by_seed):
    a, b = samples([4, 3, 2, 1]), samples([2, 2, 1, 1])
    one, other = (of_samples(*pair, scope, by_seed=by_seed) for pair in ((a, b), (b, a)))
    assert one.value == -other.value
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert (one.p_greater, one.p_less) == pytest.approx((other.p_less, other.p_greater))


def test_samples_missing_in_one_arm_are_left_out_in_both():
    a, b = samples([4, 3, 2]), samples([2, 3, 1])
    a[0, 3], b[1, 0] = np.nan, np.nan
    found = of_samples(a, b, THESE_PROBLEMS)
    assert found.value == pytest.approx((1 / 3 + 0 + 1 / 4) / 3)
    b[1] = np.nan
    assert (of_samples(a, b, THESE_PROBLEMS).n_problems, of_samples(a, b, THESE_PROBLEMS).dropped) == (2, 1)


@pytest.mark.parametrize("scope", SCOPES)
def test_no_common_sample_gives_nothing_but_a_reason(scope):
    a, b = np.array([[1.0, np.nan]]), np.array([[np.nan, 0.0]])
    found = of_samples(a, b, scope)
    assert np.isnan([found.value, found.se, *found.ci95, found.p, equivalence_p(found, 0.02)]).all()
    assert found.note


def test_one_problem_says_nothing_about_others():
    like = of_samples(samples([7], 8), samples([2], 8), PROBLEMS_LIKE_THESE)
    assert like.value == 0.625
    assert np.isnan(like.ci95).all()


def test_groups_of_problems_are_the_clusters():
    # Five groups of two equal differences say what five problems say.
    single = np.array([0.1, -0.05, 0.2, 0.0, 0.15])
    grouped = of_problems(np.repeat(single, 2), groups=np.repeat(np.arange(5), 2))
    assert grouped.ci95 == pytest.approx(of_problems(single).ci95)
    assert (grouped.clusters, grouped.n_problems) == (5, 10)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shared", [0.0, 0.5, 0.8])
def test_intervals_cover_whatever_share_of_the_luck_the_arms_have_in_common(scope, shared):
    rng = np.random.default_rng([1, round(10 * shared)])
    n, k, hits = 30, 8, 0
    for _ in range(STUDIES):
        p = 0.25 + 0.45 * rng.beta(0.5, 0.5, n)
        shift = 0.05 + 0.1 * np.sqrt(3) * rng.uniform(-1, 1, n)
        luck = rng.random((n, k))
        own = np.where(rng.random((n, k)) < shared, luck, rng.random((n, k)))
        a, b = (own < (p + shift)[:, None]).astype(float), (luck < p[:, None]).astype(float)
        low, high = of_samples(a, b, scope).ci95
        hits += low <= (0.05 if scope == PROBLEMS_LIKE_THESE else shift.mean()) <= high
    assert 0.91 <= hits / STUDIES <= 0.99


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


def test_equivalence_of_unbounded_values_is_statsmodels_two_one_sided_tests():
    rng = np.random.default_rng(5)
    for n in (3, 10, 60):
        values = rng.normal(0.5, 2.0, n)
        expected = DescrStatsW(values).ttost_mean(-1.5, 1.5)[0]
        assert equivalence_p(of_problems(values), 1.5) == pytest.approx(expected, rel=1e-6)


def test_the_excluded_bias_is_where_equivalence_begins():
    for values in ([0.0] * 200, [0.0] * 199 + [1.0], list(np.random.default_rng(6).normal(0, 0.05, 100))):
        found = of_problems(values, bounded=True)
        bias = excluded_bias(found)
        assert equivalence_p(found, 1.001 * bias) < 0.05 < equivalence_p(found, 0.999 * bias)


def test_equal_problems_are_equivalent_only_if_there_are_enough_of_them():
    # (1 - delta)^n, the chance to see none of the problems that a difference of delta has at least; Poisson here.
    found = [equivalence_p(of_problems([0.0] * n, bounded=True), 0.02) for n in (60, 149, 150)]
    assert found == pytest.approx([np.exp(-1.2), np.exp(-2.98), np.exp(-3.0)], rel=1e-4)
    assert found[1] > 0.05 > found[2]


def test_equivalence_does_not_jump_where_a_first_sample_differs():
    # A Student test called 60 equal problems p .298, and one differing sample of 480 p 2.7e-12.
    equal = np.ones((60, 8))
    one = equal.copy()
    one[0, 0] = 0.0
    for scope in SCOPES:
        at_equal, at_one = (equivalence_p(of_samples(a, equal, scope), 0.02) for a in (equal, one))
        assert (
            at_equal < at_one < 12 * at_equal
        )  # one more event of the 9.6 samples, or 1.2 problems, that 2 points are


@pytest.mark.parametrize("n", [150, 200, 250, 300])
def test_problems_that_rarely_flip_are_called_equal_at_the_nominal_rate(n):
    # 2% of the problems are lost, which is just delta. Student alone errs in 8-20%.
    counted = scipy.stats.binom.pmf(np.arange(n + 1), n, 0.02)
    p = [equivalence_p(of_problems([-1.0] * lost + [0.0] * (n - lost), bounded=True), 0.02) for lost in range(12)]
    assert sum(chance for chance, value in zip(counted, p, strict=False) if value < 0.05) <= 0.05


def test_equal_arms_have_an_exact_interval():
    found = of_samples(np.ones((64, 4)), np.ones((64, 4)), THESE_PROBLEMS)
    assert (found.value, found.se, found.p) == (0.0, 0.0, 1.0)
    assert found.ci95 == pytest.approx((np.log(0.025) / 256, -np.log(0.025) / 256))


def test_intervals_stay_within_what_is_possible():
    found = of_samples(np.ones((12, 2)), samples([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 2), PROBLEMS_LIKE_THESE)
    assert found.ci95[1] == 1.0
    assert found.p < 0.05


@pytest.mark.parametrize("delta", [0.0, -0.02])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta is"):
        equivalence_p(of_problems([0.1, 0.2]), delta)


@pytest.mark.parametrize("n", [3, 5, 30, 1000])
def test_minimum_detectable_effect_has_80_percent_power(n):
    sd = 0.1
    effect = minimum_detectable_effect(sd / np.sqrt(n), n - 1)
    assert TTestPower().power(effect / sd, n, 0.05) == pytest.approx(0.8, abs=1e-4)


def test_minimum_detectable_effect_falls_with_the_degrees_of_freedom():
    found = [minimum_detectable_effect(1.0, df) for df in [*np.exp(np.linspace(0, 14, 800)), np.inf]]
    assert np.all(np.diff(found) < 1e-6)
    assert found[-1] == pytest.approx(2.801585, abs=1e-5)


@pytest.mark.parametrize("se", [0.0, np.nan])
def test_minimum_detectable_effect_without_a_standard_error_is_unknown(se):
    assert np.isnan(minimum_detectable_effect(se, 10))
