"""Which samples, in which order, with which seeds."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from steerdec.benchmarks.design.plan import SamplingPlan
from steerdec.common.seeds import sample_seed
from steerdec.problems.sets import Problem
from steerdec.records.arms import Arm

ARMS = [
    Arm(name="B", role="baseline"),
    Arm(name="A/A", role="identity", steering={}),
    Arm(name="F", role="treatment", steering={}),
    Arm(name="B-again", role="replicate"),
    Arm(name="B-other", role="replica"),
]


def plan(problems: int = 5, samples: int = 4, seed: int = 0) -> SamplingPlan:
    return SamplingPlan([Problem(f"p{i}", f"text {i}", "1") for i in range(problems)], ARMS, samples, seed)


def test_every_sample_is_planned_once_and_found_by_its_key() -> None:
    items = list(plan().items())
    assert sorted(item.number for item in items) == list(range(len(plan()))) == list(range(5 * 4 * 5))
    assert len({(item.problem.id, item.arm.name, item.sample) for item in items}) == len(items)
    assert all(plan().index(item.problem.id, item.arm.name, item.sample) == item.number for item in items)


def test_all_arms_of_one_problem_and_sample_follow_each_other() -> None:
    groups = [(key, list(g)) for key, g in groupby(plan().items(), key=lambda i: (i.sample, i.problem.id))]
    assert len(groups) == 20
    assert all({item.arm.name for item in group} == {arm.name for arm in ARMS} for _, group in groups)
    assert [key[0] for key, _ in groups] == sorted(key[0] for key, _ in groups)


def test_no_arm_is_always_sent_first() -> None:
    firsts = [next(g).arm.name for _, g in groupby(plan(40, 5).items(), key=lambda i: (i.sample, i.problem.id))]
    assert all(20 < firsts.count(arm.name) < 60 for arm in ARMS)


def test_arms_share_the_seed_of_a_problem_and_sample_except_the_replica() -> None:
    seeds: dict[tuple[str, int], dict[str, int]] = {}
    for item in plan().items():
        seeds.setdefault((item.problem.id, item.sample), {})[item.arm.name] = item.seed
    for by_arm in seeds.values():
        other = by_arm.pop("B-other")
        assert len(set(by_arm.values())) == 1
        assert other not in by_arm.values()
    assert len({by_arm["B"] for by_arm in seeds.values()}) == len(seeds)


def test_seeds_do_not_change_from_release_to_release() -> None:
    """A run is repeated from its run.json, which holds the run's seed and not the samples'."""
    assert sample_seed(0, "2024-I-1", 0) == 8420114666576253
    assert sample_seed(0, "2024-I-1", 0, "B-other") == 4408962474193384


@given(st.integers(0, 2**53), st.text(max_size=10), st.integers(0, 10**6))
def test_seeds_are_whole_numbers_that_json_keeps(run_seed: int, problem_id: str, sample: int) -> None:
    assert 0 <= sample_seed(run_seed, problem_id, sample) < 2**53


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 50), st.integers(0, 50))
def test_neighboring_runs_share_no_seeds(run: int, other: int, i: int, j: int) -> None:
    if (run, i) != (other, j):
        assert sample_seed(run, "p", i) != sample_seed(other, "p", j)


@given(st.lists(st.booleans(), min_size=100, max_size=100))
def test_what_is_done_is_left_out_and_the_rest_keeps_order_and_seed(done: list[bool]) -> None:
    rest = list(plan().items(bytearray(done)))
    assert rest == [item for item in plan().items() if not done[item.number]]


def test_a_million_samples_are_planned_without_being_held() -> None:
    big = plan(1000, 200)
    assert len(big) == 10**6
    assert next(big.items()).sample == 0
