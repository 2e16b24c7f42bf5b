"""Trend, strata and mediators against closed forms, SciPy and planted truths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from steerdec.benchmarks.stats.estimators import Counts, mean_over_problems
from steerdec.benchmarks.stats.secondary import (
    difference_at_equal_length,
    difficulty_strata,
    dose_trend,
    truncation_parts,
)


def counts(correct, graded):
    correct = np.asarray(correct)
    return Counts(correct, np.broadcast_to(np.asarray(graded), correct.shape))


def test_trend_is_the_mean_of_the_slopes_of_the_problems():
    rng = np.random.default_rng(0)
    doses = (0.0, 0.4, 1.0, 2.5)
    arms = [counts(rng.binomial(10, 0.5, 6), 10) for _ in doses]
    slopes = [scipy.stats.linregress(doses, [arm.accuracy[i] for arm in arms]).slope for i in range(6)]
    expected, found = mean_over_problems(slopes), dose_trend(doses, arms)
    assert found.value == pytest.approx(expected.value)
    assert found.ci95 == pytest.approx(expected.ci95)


def test_trend_recovers_a_planted_slope_and_ignores_difficulty():
    rng = np.random.default_rng(1)
    base, doses = rng.uniform(0.3, 0.9, 60), (0.0, 0.5, 1.0)
    arms = [Counts(rng.binomial(64, base - 0.2 * dose), np.full(60, 64)) for dose in doses]
    found = dose_trend(doses, arms)
    assert found.ci95[0] < -0.2 < found.ci95[1]
    assert found.se < 0.015  # the spread of difficulty alone would give .2 / sqrt(60) = .026


def test_trend_leaves_out_a_problem_ungraded_at_one_dose():
    arms = [counts([1, 2, 3], 4), counts([2, 2, 0], [4, 4, 0]), counts([3, 4, 4], 4)]
    found = dose_trend((0, 1, 2), arms)
    assert (found.n_problems, found.dropped) == (2, 1)
    assert found.value == pytest.approx((0.25 + 0.25) / 2)


def test_trend_needs_two_doses():
    found = dose_trend((1.0, 1.0), [counts([1, 2], 4), counts([1, 2], 4)])
    assert np.isnan(found.value)
    assert found.note


def test_strata_cover_every_problem_once():
    accuracy = counts([0, 24, 25, 50, 75, 76, 100], 100)
    nothing = counts([1] * 7, 2)
    strata = difficulty_strata(accuracy, nothing, nothing)
    assert [(label, found.n_problems) for label, found in strata] == [("hard", 2), ("medium", 2), ("easy", 3)]


def test_strata_sorted_by_other_samples_show_no_effect_where_there_is_none():
    rng = np.random.default_rng(2)
    p = rng.beta(0.7, 0.7, 4000)
    sorting, arm, against = (Counts(rng.binomial(4, p), np.full(4000, 4)) for _ in range(3))
    honest = difficulty_strata(sorting, arm, against)
    assert all(found.p > 0.01 for _, found in honest)
    # Sorted by the samples they are compared with, the arms seem to help where it is hard and hurt where it is easy.
    circular = dict(difficulty_strata(against, arm, against))
    assert circular["hard"].value > 0.03
    assert circular["easy"].value < -0.03


def test_truncation_parts_by_hand():
    # Arm: 8 of 10 finish, 6 right: f = .8, q = .75. Against: 5 finish, 3 right: f = .5, q = .6.
    # Finishing (.3) (1.35 / 2) = .2025, answers (.15) (1.3 / 2) = .0975, together .6 - .3.
    parts = truncation_parts(counts([6], 10), [8], counts([3], 10), [5])
    assert parts.by_finishing.value == pytest.approx(0.2025)
    assert parts.by_answers.value == pytest.approx(0.0975)


def test_truncation_parts_add_up_problem_by_problem():
    rng = np.random.default_rng(3)
    done_a, done_b = rng.integers(0, 9, 50), rng.integers(0, 9, 50)
    arm, against = counts(rng.binomial(done_a, 0.7), 8), counts(rng.binomial(done_b, 0.4), 8)
    parts = truncation_parts(arm, done_a, against, done_b)
    assert parts.by_finishing.n_problems == 50
    assert parts.by_finishing.value + parts.by_answers.value == pytest.approx(np.mean(arm.accuracy - against.accuracy))


@pytest.mark.parametrize(("done", "finishing"), [(0, -0.5), (10, 0.0)])
def test_an_arm_that_never_finishes_loses_by_finishing_alone(done, finishing):
    parts = truncation_parts(counts([done // 2], 10), [done], counts([5], 10), [10])
    assert parts.by_finishing.value == pytest.approx(finishing)
    assert parts.by_answers.value == pytest.approx(0.0)


def test_truncation_parts_of_arms_that_both_never_finish_are_zero():
    parts = truncation_parts(counts([0], 10), [0], counts([0], 10), [0])
    assert (parts.by_finishing.value, parts.by_answers.value) == (0.0, 0.0)


def test_truncation_parts_leave_out_what_was_not_graded():
    parts = truncation_parts(counts([1, 0], [2, 0]), [2, 0], counts([1, 1], 2), [2, 2])
    assert (parts.by_finishing.n_problems, parts.by_finishing.dropped) == (1, 1)


def test_difference_at_equal_length_is_the_intercept_of_least_squares():
    rng = np.random.default_rng(4)
    x = rng.normal(0.3, 0.2, 40)
    y = 0.05 - 0.2 * x + rng.normal(0, 0.05, 40)
    fit = sm.OLS(y, sm.add_constant(x)).fit()
    found = difference_at_equal_length([*y, np.nan], [*x, 0.1])
    assert found.value == pytest.approx(fit.params[0])
    assert found.ci95 == pytest.approx(tuple(fit.conf_int()[0]))
    assert found.p == pytest.approx(fit.pvalues[0])
    assert (found.n_problems, found.dropped) == (40, 1)


@pytest.mark.parametrize(
    ("y", "x"), [([0.1, 0.2], [0.1, 0.3]), ([0.1, 0.2, 0.3], [0.1, 0.1, 0.1]), ([0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5])]
)
def test_difference_at_equal_length_says_when_it_is_not_known(y, x):
    found = difference_at_equal_length(y, x)
    assert np.isnan(found.ci95).all()
    assert found.note
