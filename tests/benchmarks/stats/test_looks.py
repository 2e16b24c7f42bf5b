"""Planned looks: the bounds of published tables, and the error of whoever stops at any look."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from steerdec.benchmarks.stats.looks import (
    PlannedLook,
    adjusted_p,
    arms_needed,
    boundaries,
    chance_of_a_verdict,
    plan_looks,
)


def test_the_looks_are_shares_of_the_samples_and_never_two_at_once():
    assert plan_looks(32) == tuple(PlannedLook(at, 32) for at in (4, 8, 16, 24, 32))
    assert [look.samples for look in plan_looks(4)] == [1, 2, 3, 4]
    assert plan_looks(1) == (PlannedLook(1, 1),)


def test_bounds_are_those_of_the_tables():
    # Four equal looks, two-sided 5%: Reboussin et al. (2000), Controlled Clinical Trials 21, and R's gsDesign.
    z = scipy.stats.norm.isf(boundaries(plan_looks(4, (0.25, 0.5, 0.75, 1))))
    assert z == pytest.approx([4.3326, 2.9631, 2.3590, 2.0141], abs=5e-4)
    assert boundaries(plan_looks(7, (1,))) == pytest.approx([0.025])


def test_stopping_at_any_look_errs_at_the_nominal_rate():
    looks = plan_looks(32)
    rng, steps = np.random.default_rng(0), np.diff([0, *(look.samples for look in looks)])
    walk = np.cumsum(rng.normal(size=(200_000, len(steps))) * np.sqrt(steps), axis=1)
    p = scipy.stats.norm.sf(walk / np.sqrt([look.samples for look in looks]))
    assert np.mean((p < boundaries(looks)).any(axis=1)) == pytest.approx(0.025, abs=0.0015)
    assert np.mean((p < 0.025).any(axis=1)) > 0.05  # what looking without a plan does


@pytest.mark.parametrize("alpha", [0.003, 0.025, 0.05])
def test_an_adjusted_p_is_the_level_whose_bound_it_meets(alpha):
    looks = plan_looks(32)
    found = [adjusted_p(bound, looks, number) for number, bound in enumerate(boundaries(looks, alpha))]
    assert found == pytest.approx([alpha] * len(looks), rel=0.005)


def test_with_one_look_nothing_is_adjusted():
    assert adjusted_p(0.0123, plan_looks(16, (1,)), 0) == 0.0123


def test_a_run_extended_before_its_end_spends_what_is_left_and_one_extended_after_it_nothing():
    before = boundaries((PlannedLook(8, 32), PlannedLook(16, 64), PlannedLook(64, 64)))
    assert before[1] == 0.0  # a quarter of 64 was spent at a quarter of 32
    assert before[2] == pytest.approx(0.025, rel=0.01)
    after = boundaries((PlannedLook(32, 32), PlannedLook(64, 64)))
    assert after == pytest.approx((0.025, 0.0))
    assert adjusted_p(1e-9, (PlannedLook(32, 32), PlannedLook(64, 64)), 1) == 1.0


def test_more_problems_count_as_information() -> None:
    """Half the samples of 20 problems are a quarter of all samples of 40, and half the error was planned for them."""
    added = boundaries((PlannedLook(8, 16, 20), PlannedLook(16, 16, 40)))
    assert added == pytest.approx(boundaries((PlannedLook(4, 8), PlannedLook(16, 16))))
    assert added[0] == boundaries((PlannedLook(8, 16), PlannedLook(16, 16)))[0], "what was spent stays spent"


def test_the_chance_of_a_verdict():
    assert chance_of_a_verdict(0.10, 0.02, 0.01, 0.0) > 0.99
    assert chance_of_a_verdict(0.0, 0.0142, 0.01, 0.0) < 0.06
    assert chance_of_a_verdict(0.0, 0.0142, 0.01, 0.1) > 0.99  # it will be shown equal
    assert chance_of_a_verdict(0.05, 0.0, 0.01, 0.0) == 1.0


def test_an_arm_is_dropped_when_all_that_needs_it_is_settled():
    arms, checks = ("B", "A/A", "F-up", "N-up"), ("A/A",)
    claims = {"helps": ("F-up", "B"), "place": ("F-up", "N-up")}
    assert arms_needed(arms, "B", checks, claims, ()) == arms
    assert arms_needed(arms, "B", checks, claims, ("helps",)) == arms
    assert arms_needed(arms, "B", checks, claims, ("place",)) == ("B", "A/A", "F-up")
    assert arms_needed(arms, "B", checks, claims, claims) == ()
    described = (*arms, "P-up")  # no claim names it
    assert arms_needed(described, "B", checks, claims, claims) == ("B", "A/A", "P-up")
    assert arms_needed(("B", "A/A"), "B", checks, {}, ()) == ("B", "A/A")
