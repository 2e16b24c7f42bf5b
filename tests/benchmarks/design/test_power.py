"""The plan of a run: known figures, and simulated power at the effect it names."""

from __future__ import annotations

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from steerdec.benchmarks.design import from_run
from steerdec.benchmarks.design.from_run import PlanError
from steerdec.benchmarks.design.power import plan, usual_sd
from steerdec.benchmarks.stats.comparisons import PROBLEMS_LIKE_THESE, THESE_PROBLEMS, difference, spread_of_samples
from steerdec.cli.bench import bench_app


@pytest.mark.parametrize(("k", "these", "like_these"), [(16, 4.5, 5.8), (32, 3.2, 4.9), (64, 2.2, 4.3)])
def test_60_problems_of_aime_with_an_effect_that_varies_by_10_points(k, these, like_these):
    found = plan(60, k, arms=6)  # accuracy .71 with standard deviation .29: v = .122
    assert 100 * found.mde_these_problems == pytest.approx(these, abs=0.05)
    assert 100 * found.mde_problems_like_these == pytest.approx(like_these, abs=0.05)


def test_by_hand():
    # v = .5 * .5 - .3^2 = .16; 2 v / (k n) = .32 / 1600 = .0002, and 2.80159 standard errors.
    assert plan(100, 16, 2, p_bar=0.5, p_sd=0.3).mde_these_problems == pytest.approx(
        2.80159 * np.sqrt(0.0002), rel=1e-5
    )


def test_the_spread_scales_with_what_an_accuracy_leaves_room_for():
    assert usual_sd(0.71) == 0.29
    for p in np.linspace(0, 1, 101):
        assert usual_sd(p) == pytest.approx(usual_sd(1 - p))
        assert usual_sd(p) ** 2 / max(p * (1 - p), 1e-9) == pytest.approx(0.0 if p in (0, 1) else 0.29**2 / 0.2059)


def test_the_command_plans_for_every_accuracy():
    seen = []
    for percent in (1, 2, 5, 10, 29, 40, 50, 60, 71, 90, 95, 98, 99):
        result = CliRunner().invoke(bench_app, ["plan", "--accuracy", str(percent / 100)])
        assert result.exit_code == 0, result.stderr
        seen.append([float(x) for x in re.findall(r": +([0-9.]+) points", result.stdout)])
    these, like_these = np.array(seen).T
    assert these == pytest.approx(these[::-1])
    assert (these[0], these[8], like_these[8]) == (0.7, 3.2, 4.9)
    assert (np.diff(these[:7]) >= 0).all()
    assert (like_these > these).all()


def test_more_samples_cannot_go_below_the_spread_of_the_effect():
    assert plan(60, 10**9, 2).mde_problems_like_these == pytest.approx(2.848 * 0.1 / np.sqrt(60), rel=1e-3)


def test_an_effect_that_does_not_vary_needs_students_t_only():
    found = plan(60, 32, 2, effect_sd=0.0)
    assert found.mde_problems_like_these / found.mde_these_problems == pytest.approx(2.848 / 2.802, rel=1e-3)


def test_cost_counts_every_arm():
    found = plan(60, 32, 12, mean_tokens=10_000)
    assert (found.samples, found.tokens) == (23_040, 230_400_000)
    assert np.isnan(plan(60, 32, 12).tokens)


def test_one_problem_says_nothing_about_others():
    found = plan(1, 32, 2)
    assert np.isfinite(found.mde_these_problems)
    assert np.isnan(found.mde_problems_like_these)


@pytest.mark.parametrize("scope", [THESE_PROBLEMS, PROBLEMS_LIKE_THESE])
def test_a_simulated_study_sees_the_effect_in_80_percent_of_runs(scope):
    n, k, effect_sd = 60, 32, 0.06
    p_values = np.array([0.3, 0.5, 0.7])
    p = np.resize(p_values, n)
    planned = plan(n, k, 2, p_bar=0.5, p_sd=float(np.std(p)), effect_sd=effect_sd)
    effect = planned.mde_these_problems if scope == THESE_PROBLEMS else planned.mde_problems_like_these
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(1500):
        varies = 0.0 if scope == THESE_PROBLEMS else effect_sd * np.sqrt(3) * rng.uniform(-1, 1, n)
        raised = p + effect / 2 + varies / 2
        lowered = p - effect / 2 - varies / 2
        arm, against = ((np.arange(k) < rng.binomial(k, q)[:, None]).astype(float) for q in (raised, lowered))
        spread = spread_of_samples(arm, against, by_seed=False, bounded=True)
        seen += difference(spread, scope).p < 0.05
    assert seen / 1500 == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"n_problems": 0}, "n_problems is 0; at least 1"),
        ({"k": 0}, "k is 0; at least 1"),
        ({"arms": -1}, "arms is -1; at least 1"),
        ({"p_bar": 1.2}, "p_bar 1.2"),
        ({"p_bar": 0.9, "p_sd": 0.4}, "p_sd is 0.4, impossible with p_bar 0.9"),
        ({"effect_sd": -0.1}, "effect_sd is -0.1; 0 or more"),
    ],
)
def test_impossible_plans_are_refused(change, line):
    with pytest.raises(ValueError, match=line):
        plan(**{"n_problems": 60, "k": 16, "arms": 6} | change)


@pytest.mark.parametrize("n_problems", [0, 1, 5_001, 10**9])
def test_more_or_fewer_problems_than_can_be_simulated_are_refused(n_problems):
    with pytest.raises(PlanError, match=f"--problems: {n_problems} cannot be planned"):
        list(from_run.sizes(n_problems, 4))
