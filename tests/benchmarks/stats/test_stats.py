"""Estimators against closed forms, SciPy and planted truths."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from steerdec.benchmarks.stats.estimators import (
    Counts,
    Estimate,
    avg_at_k,
    majority_is_correct,
    mean_over_problems,
    pass_at_k,
    student,
)


def counts(correct, graded):
    correct = np.asarray(correct)
    return Counts(correct, np.broadcast_to(np.asarray(graded), correct.shape))


def test_avg_at_k_by_hand():
    # Accuracies 1, .75, .5, .25: mean .625, variance (.140625 + .015625 + .015625 + .140625) / 3 = .1041667,
    # standard error sqrt(.1041667 / 4) = .1613743, t(.975, 3) = 3.1824463.
    estimate = avg_at_k(counts([4, 3, 2, 1], 4))
    assert estimate.value == 0.625
    assert estimate.se == pytest.approx(0.1613743, abs=1e-7)
    assert estimate.ci95 == pytest.approx((0.625 - 3.1824463 * 0.1613743, 1.0), abs=1e-6)  # 1.1386 is cut


def test_every_problem_weighs_the_same_whatever_its_number_of_samples():
    assert avg_at_k(counts([1, 0], [1, 100])).value == 0.5


def test_a_problem_without_graded_samples_is_left_out_and_counted():
    estimate = avg_at_k(counts([1, 0, 3], [4, 0, 4]))
    assert (estimate.value, estimate.n_problems, estimate.dropped) == (0.5, 2, 1)


def test_avg_at_k_covers_the_accuracy_on_problems_like_these():
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(2000):
        p = rng.beta(1.0, 0.5, 40)
        low, high = avg_at_k(Counts(rng.binomial(8, p), np.full(40, 8))).ci95
        hits += low <= 2 / 3 <= high
    assert 0.93 <= hits / 2000 <= 0.97


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=40).filter(lambda v: np.ptp(v) > 0))
def test_mean_over_problems_is_scipys_t_test(values):
    estimate, expected = mean_over_problems(values), scipy.stats.ttest_1samp(values, 0.0)
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    assert estimate.df == len(values) - 1
    assert estimate.se == pytest.approx(scipy.stats.sem(values), rel=1e-9)


def test_interval_and_p_agree_on_zero():
    rng = np.random.default_rng(3)
    for _ in range(200):
        estimate = mean_over_problems(rng.normal(0.3, 1.0, 12))
        assert (estimate.p < 0.05) == (not estimate.ci95[0] <= 0 <= estimate.ci95[1])


def test_infinite_degrees_of_freedom_are_the_normal_distribution():
    estimate = student(1.0, 0.5, np.inf, 10, 0)
    assert estimate.ci95 == pytest.approx((1 - 1.9599640 * 0.5, 1 + 1.9599640 * 0.5))
    assert estimate.p == pytest.approx(2 * scipy.stats.norm.sf(2.0))


@pytest.mark.parametrize(("values", "value"), [([], math.nan), ([math.nan], math.nan), ([0.25], 0.25)])
def test_fewer_than_two_problems_give_a_reason_and_no_interval(values, value):
    estimate = mean_over_problems(values)
    assert estimate.value == pytest.approx(value, nan_ok=True)
    assert np.isnan([estimate.se, *estimate.ci95, estimate.p]).all()
    assert estimate.note


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3])
def test_equal_values_have_no_spread_and_say_so(value):
    estimate = mean_over_problems([value] * 5)
    assert estimate.value == pytest.approx(value)
    assert np.isnan(estimate.ci95).all()
    assert "all 5 problems" in estimate.note
    assert estimate.p == (1.0 if value == 0 else 1 / 16)  # the sign-flip test: 2 of 2^5
    assert estimate.df == 4


def test_rounding_does_not_count_as_spread():
    assert mean_over_problems([3 / 10 - 2 / 10, 2 / 10 - 1 / 10]).se == 0.0


def test_pass_at_k_by_hand():
    # 4 samples, 2 right: C(2,2) / C(4,2) = 1/6 of the pairs have none right.
    assert pass_at_k(counts([2], 4), 2)[0] == pytest.approx(5 / 6)


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_closed_form(case):
    n, c, k = case
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(counts([c], n), k)[0] == pytest.approx(float(exact), rel=1e-12, abs=1e-15)


def test_pass_at_k_is_stable_for_a_million_samples():
    n, k = 10**6, 1000
    assert pass_at_k(counts([1], n), k)[0] == pytest.approx(k / n, rel=1e-12)
    exact = 1 - Fraction(comb(n - 3, k), comb(n, k))
    assert pass_at_k(counts([3], n), k)[0] == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(5)
    found = pass_at_k(counts(rng.binomial(12, 0.2, 40_000), 12), 5)
    assert np.mean(found) == pytest.approx(1 - 0.8**5, abs=4 * np.std(found) / 200)


def test_pass_at_k_needs_k_samples():
    assert np.isnan(pass_at_k(counts([3, 0], [4, 5]), 5)).tolist() == [True, False]
    with pytest.raises(ValueError, match="k is 0"):
        pass_at_k(counts([1], 2), 0)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "8", "8"], [True, False, False], False),
        (["7", "8", "8"], [False, True, True], True),
        ([None, None, None, "7"], [False, False, False, True], True),  # no answer, no vote
        (["8", "7", "7", "8"], [False, True, True, False], False),  # a tie: 8 came first
        (["7", "8", "8", "7"], [True, False, False, True], True),
        ([None, None], [False, False], False),
        ([], [], False),
    ],
)
def test_majority(answers, correct, expected):
    assert majority_is_correct(answers, correct) is expected


@pytest.mark.parametrize(
    ("correct", "graded", "line"),
    [
        ([1, 5], [4, 4], "problem 1: 5 correct of 4 graded; 0 to 4 is allowed"),
        ([-1], [4], "problem 0: -1 correct of 4 graded; 0 to 4 is allowed"),
        ([[1, 2]], [[4, 4]], r"correct \(1, 2\) and graded \(1, 2\) must be two lists"),
        ([1, 2], [4], r"correct \(2,\) and graded \(1,\) must be two lists of one length"),
    ],
)
def test_impossible_counts_are_refused(correct, graded, line):
    with pytest.raises(ValueError, match=line):
        Counts(np.array(correct), np.array(graded))


def test_counts_are_whole_numbers_whatever_they_were_made_from():
    made = Counts([1, 0], [2, 0])  # type: ignore[arg-type]
    assert made.correct.dtype == made.graded.dtype == np.int64
    with np.errstate(all="raise"):  # a problem without graded samples is no division by zero
        assert np.array_equal(made.accuracy, [0.5, np.nan], equal_nan=True)


def test_what_was_counted_and_estimated_does_not_change():
    for made, name in ((counts([1], [2]), "graded"), (student(0.1, 0.05, 9, 10, 0), "value")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, 0)
    assert Estimate(0.1, 0.05, 9, (0.0, 0.2), 0.1, 10).dropped == 0
