"""The parts of `steerdec tune` that need no server: the space, the split of the problems, the rungs and the budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.design.resolving import resolve
from steerdec.benchmarks.tune import final, space
from steerdec.benchmarks.tune.halving import Budget, Extent, best, extent, first_rung, rung_after
from steerdec.benchmarks.tune.records import Setting
from steerdec.benchmarks.tune.split import SplitError, divided, write_problems
from steerdec.policies import registry
from steerdec.problems.sets import Problem, ProblemSet, load_problems
from steerdec.records.arms import Arm, ArmSet, parse_arm_set
from steerdec.records.summary import ClaimSummary

THRESHOLDS = {"p70": 0.2, "p80": 0.6, "p90": 1.4}


def resolved(arms: list[Arm], base: float) -> ArmSet:
    whole = ArmSet(name="s", baseline="B", arms=tuple(arms))
    return resolve(whole, temperature=base, threshold_nats=0.6)


# The space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0.02, 0.6, 1.0, 90.0])
def test_every_setting_of_the_space_can_be_asked_for(base: float) -> None:
    arms = [*space.plain_arms(base), *space.drawn(space.steered_arms(THRESHOLDS, base), space.MAX_SETTINGS, 0)]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in resolved(arms, base).arms:
        if arm.steering is not None:
            assert registry.parse(dict(arm.steering)).telemetry == "summary"
    policies = {(arm.steering or {}).get("policy", "split") for arm in arms}
    assert policies == set(registry.POLICIES) - ({"dynatemp"} if base == 90.0 else set())  # to 135 it cannot go


def test_plain_temperatures_begin_with_the_baseline_and_never_repeat_it() -> None:
    arms = resolved(space.plain_arms(0.6), 0.6).arms
    assert (arms[0].name, arms[0].role, arms[0].temperature) == ("B", "baseline", 0.6)
    assert [arm.temperature for arm in arms[1:]] == [0.12, 0.21, 0.3, 0.42, 0.84, 1.2]
    assert all(arm.steering is None for arm in arms)
    assert len(space.plain_arms(0.01)) == 1 + sum(factor > 1 for factor in space.PLAIN)


def test_a_draw_takes_all_policies_in_turn_and_begins_with_the_smaller_ones() -> None:
    every = space.steered_arms(THRESHOLDS, 1.0)
    few, more = (space.drawn(every, n, seed=3) for n in (6, 20))
    assert more[:6] == few
    assert {(arm.steering or {}).get("policy", "split") for arm in few} == set(registry.POLICIES)
    assert space.drawn(every, 20, seed=4) != more
    assert sorted(arm.name for arm in space.drawn(every, 1000, 3)) == sorted(arm.name for arm in every)


def own(*arms: dict[str, Any]) -> ArmSet:
    return parse_arm_set({"name": "own", "baseline": "B", "arms": [{"name": "B", "role": "baseline"}, *arms]})


def test_a_users_own_settings_are_the_steered_arms_of_a_set() -> None:
    arms = space.arms_from(
        own(
            {"name": "A/A", "role": "identity", "steering": {"fork_temperature": "base"}},
            {"name": "cold", "role": "treatment", "steering": {"fork_temperature": 0.1}},
            {"name": "plain", "role": "treatment", "temperature": 0.5},
            {"name": "placebo", "role": "placebo", "steering": {"select": "random", "fork_rate": 0.2}},
        )
    )
    assert [(arm.name, arm.steering) for arm in arms] == [("cold", {"fork_temperature": 0.1, "telemetry": "summary"})]


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ([], "own has no arm with role treatment and a steering"),
        ([{"name": "T=x2", "role": "treatment", "steering": {}}], 'arm "T=x2" has the name of a plain temperature'),
        (
            [{"name": f"a{i}", "role": "treatment", "steering": {}} for i in range(91)],
            "own has 91 arms to try; at most 90",
        ),
    ],
)
def test_settings_that_cannot_be_tried_are_named(arms: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(space.SpaceError) as e:
        space.arms_from(own(*arms))
    assert words in str(e.value)


# The problems -------------------------------------------------------------------------------------


def problem_set(n: int, **changes: Any) -> ProblemSet:
    return ProblemSet("set", tuple(Problem(f"p{i}", f"What is {i}?", str(i), **changes) for i in range(n)), "number")


def test_the_problems_are_divided_by_a_hash_and_each_is_on_one_side() -> None:
    whole = problem_set(60)
    halves = divided(whole, 0.4, seed=1)
    ids = [{p.id for p in part.problems} for part in (halves.tuning, halves.held_out)]
    assert [len(part) for part in ids] == [24, 36]
    assert not ids[0] & ids[1]
    assert divided(ProblemSet("set", whole.problems[::-1], "number"), 0.4, 1).tuning.sha256 == halves.tuning.sha256
    assert divided(whole, 0.4, 2).tuning.sha256 != halves.tuning.sha256


def test_problems_of_a_group_or_of_one_text_stay_together() -> None:
    grouped = [Problem(f"g{i}", f"Story {i}", "1", group=f"story {i % 20}") for i in range(60)]
    same = [Problem(f"s{i}", f"What  is {i % 10} ?", "1") for i in range(30)]
    halves = divided(ProblemSet("set", (*grouped, *same), "number"), 0.5, seed=0)
    for key in (lambda p: p.group, lambda p: " ".join(p.problem.split()) if p.group is None else None):
        sides = [{key(p) for p in part.problems} - {None} for part in (halves.tuning, halves.held_out)]
        assert not sides[0] & sides[1]
        assert sides[0]
        assert sides[1]


@pytest.mark.parametrize(("n", "share"), [(17, 0.5), (40, 0.1), (40, 0.8)])
def test_too_few_problems_are_named(n: int, share: float) -> None:
    with pytest.raises(SplitError, match=f"set has {n} independent problems, of which .* at least 8 and 10 are needed"):
        divided(problem_set(n), share, seed=0)


def test_the_written_problems_load_as_they_were(tmp_path: Path) -> None:
    whole = problem_set(5, group="all", kind="number")
    write_problems(tmp_path / "p.jsonl", whole.problems)
    assert load_problems(str(tmp_path / "p.jsonl")).sha256 == whole.sha256


# The rungs ----------------------------------------------------------------------------------------


def test_a_third_of_each_family_goes_on_with_three_times_the_samples() -> None:
    steered, plain = [f"s{i}" for i in range(10)], ["B", "T1", "T2", "T3"]
    scores = {name: i / 10 for i, name in enumerate(steered)} | {"B": 0.5, "T1": 0.6, "T2": 0.1, "T3": 0.1}
    first = first_rung(steered, plain, 2)
    second = rung_after(first, scores)
    assert (second.number, second.samples) == (2, 6)
    assert (second.steered, second.plain) == (("s6", "s7", "s8", "s9"), ("B", "T1"))
    third = rung_after(second, scores)
    assert (third.samples, third.steered, third.plain) == (18, ("s8", "s9"), ("T1",))
    assert third.is_last
    assert not second.is_last
    assert third.sampled == ("s8", "s9")  # the plain temperature is found already
    assert best(third.steered, scores) == "s9"
    assert best(third.plain, {}) == "T1"


def test_of_equal_scores_the_earlier_arm_goes_on_and_the_baseline_is_the_first() -> None:
    equal = dict.fromkeys(("B", "T1", "T2", "T3", "s0", "s1"), 0.5)
    rung = rung_after(first_rung(["s0", "s1"], ["B", "T1", "T2", "T3"], 1), equal)
    assert (rung.steered, rung.plain) == (("s0",), ("B", "T1"))
    assert best(rung.plain, equal) == "B"


def test_the_samples_of_a_search_are_counted_as_they_are_made() -> None:
    # 27 and 7 arms on 1, 9 and 3 on 2 more, 3 on 6 more (one plain temperature is left).
    assert extent(27, 7, 1) == Extent(34 + 12 * 2 + 3 * 6, 9)
    assert extent(2, 1, 5) == Extent(10, 5)
    assert extent(90, 7, 1) == Extent(97 + 33 * 2 + 10 * 6 + 4 * 18 + 2 * 54, 81)


# The budget ---------------------------------------------------------------------------------------


def test_without_a_budget_everything_is_allowed() -> None:
    budget = Budget(None, 30, 30)
    assert budget.first_candidates(10**9, 1e6, 7, 2) == math.inf
    assert budget.allows(10**9, 1e6, 1000)
    assert budget.test_samples(10**9, 1e6, 16) == 16


def test_a_budget_leaves_half_to_the_test() -> None:
    budget = Budget(100_000, problems=10, held_out=10)
    assert budget.first_candidates(1_000, 100.0, plain=7, samples=2) == 24 - 7
    assert budget.allows(20_000, 100.0, 30)
    assert not budget.allows(20_001, 100.0, 30)
    assert budget.test_samples(50_000, 100.0, 16) == 10
    assert budget.test_samples(99_000, 100.0, 16) == 0
    least = budget.least(1_000, 100.0, plain=7, samples=2)
    assert least == 1_000 + 10 * 2 * 9 * 100 + 5 * 10 * 4 * 100  # two settings, and 4 samples in each arm of the test
    assert Budget(least, 10, 10).first_candidates(1_000, 100.0, 7, 2) >= 2
    assert Budget(10_000, 10, 1).least(9_000, 100.0, plain=7, samples=2) == 2 * (9_000 + 10 * 2 * 9 * 100)


# The test -----------------------------------------------------------------------------------------

COLD = Setting(name="cold", temperature=1.0, steering={"fork_temperature": 0.2, "telemetry": "summary"}, tuning_score=1)
PLAIN = Setting(name="T=x0.5", temperature=0.5, steering=None, tuning_score=0.5)


def test_the_test_declares_its_claims_against_the_baseline_and_the_best_plain_temperature() -> None:
    arm_set = final.test_set(COLD, PLAIN, 1.0)
    assert [(claim.arm, claim.baseline) for claim in arm_set.claims] == [
        ("tuned", "B"),
        ("tuned", "plain"),
        ("plain", "B"),
    ]
    arms = {arm.name: arm for arm in resolve(arm_set, temperature=1.0, threshold_nats=0.6).arms}
    assert arms["tuned"].steering == {"fork_temperature": 0.2, "threshold_nats": 0.6}
    assert (arms["plain"].temperature, arms["plain"].steering) == (0.5, None)
    alone = final.test_set(COLD, None, 1.0)
    assert [claim.id for claim in alone.claims] == [final.STEERING_HELPS]


def claim(name: str, verdict: str) -> ClaimSummary:
    return ClaimSummary.model_validate(
        {
            "id": name,
            "statement": "",
            "verdict": verdict,
            "reason": "",
            "scope": "problems like these",
            "verdict_these_problems": "undecided",
        }
    )


@pytest.mark.parametrize(
    ("steering", "plain", "advice"),
    [
        ("holds", "holds", "steer"),
        ("undecided", "holds", "temperature"),
        ("undecided", "undecided", "nothing"),
        ("reversed", "no effect", "nothing"),
        ("not applied", "holds", "temperature"),
    ],
)
def test_only_what_holds_is_advised(steering: str, plain: str, advice: str) -> None:
    claims = [claim(final.STEERING_HELPS, steering), claim(final.PLAIN_HELPS, plain)]
    assert final.advice(claims) == advice


def test_the_printed_option_is_one_that_serve_takes() -> None:
    from steerdec.server.launch.start import given_steering

    line = final.steering_line(COLD)
    assert line == """--steering '{"fork_temperature": 0.2}'"""
    assert given_steering(line.removeprefix("--steering '").removesuffix("'"))["fork_temperature"] == 0.2
