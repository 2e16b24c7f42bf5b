"""The soak's own eyes: each fault it is there to see, made by hand, is seen."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from steerdec.benchmarks.operations.soak_checks import Plan, check_answer, gathered, plan, repeat_problems
from steerdec.policies import registry
from steerdec.steering import params

PLANS = plan(2000, "model", 0)


def good_answer(p: Plan) -> list[dict[str, Any]]:
    """What a right server would be gathered to."""
    asked, h = p.body["steering"], [0.01, 2.5, 0.2, 3.0]
    fork = [x > asked["threshold_nats"] for x in h]
    steering = {
        "tokens": 4,
        "forks": sum(fork),
        "fork_rate": sum(fork) / 4,
        "mean_entropy_nats": sum(h) / 4,
        "threshold_nats": asked["threshold_nats"],
        "entropy_nats": h,
        "fork": fork,
        "temperature": [asked["fork_temperature" if f else "other_temperature"] for f in fork],
    }
    return [{"tokens": 4, "finished": True, "steering": copy.deepcopy(steering)} for _ in range(p.body["n"])]


def entropy_plans() -> list[Plan]:
    return [p for p in PLANS if p.kind == "steered, tokens" and "select" not in p.body["steering"]]


def test_token_ids_that_were_not_asked_for_are_seen() -> None:
    p = next(p for p in entropy_plans() if not p.body["stream"] and not p.body["return_token_ids"])
    choice = {"index": 0, "token_ids": [7], "finish_reason": "stop"}
    found = gathered(p, json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}))
    assert check_answer(p, found) == ["choice 0 has token ids that were not requested"]


FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a token too many": lambda c: c.update(tokens=5),
    "an entropy missing": lambda c: c["steering"]["entropy_nats"].pop(),
    "a record missing": lambda c: c["steering"]["entropy_nats"].__setitem__(1, None),
    "a fork not marked": lambda c: c["steering"]["fork"].__setitem__(1, False),
    "the two temperatures exchanged": lambda c: c["steering"]["temperature"].__setitem__(
        0, c["steering"]["temperature"][1]
    ),
    "a wrong count of forks": lambda c: c["steering"].update(forks=1, fork_rate=0.25),
    "a wrong mean": lambda c: c["steering"].update(mean_entropy_nats=1.0),
    "another's threshold": lambda c: c["steering"].update(threshold_nats=9.0),
    "no end": lambda c: c.update(finished=False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    p = entropy_plans()[0]
    choices = good_answer(p)
    assert check_answer(p, choices) == []
    FAULTS[fault](choices[-1])
    assert len(check_answer(p, choices)) == 1


def test_a_strangers_record_is_seen() -> None:
    plans = entropy_plans()
    for mine, strangers in itertools.pairwise(plans):
        choices = good_answer(mine)
        for position in range(4):
            taken = copy.deepcopy(choices)
            temperature = good_answer(strangers)[0]["steering"]["temperature"][position]
            taken[0]["steering"]["temperature"][position] = temperature
            assert check_answer(mine, taken)


def test_no_two_requests_share_a_temperature() -> None:
    temperatures = Counter(
        p.body["steering"][name]
        for p in PLANS
        if p.refused_field is None and "steering" in p.body
        for name in ("fork_temperature", "other_temperature")
    )
    assert max(temperatures.values()) == 1


def test_a_plan_mixes_everything_and_repeats() -> None:
    assert plan(2000, "model", 0) == PLANS
    assert plan(2000, "model", 1) != PLANS
    kinds = Counter(p.kind for p in PLANS)
    steered = {f"steered, {telemetry}" for telemetry in ("tokens", "summary", "none")}
    assert set(kinds) == {"client leaves", "must be refused", "unsteered"} | steered
    assert kinds["client leaves"] == pytest.approx(2000 / 3, rel=0.1)
    for values in ({p.path for p in PLANS}, {p.body["stream"] for p in PLANS}, {p.body["n"] for p in PLANS}):
        assert len(values) == 2
    for p in PLANS:
        if "steering" in p.body and p.refused_field is None:
            registry.parse(p.body["steering"])
        elif p.refused_field is not None:
            with pytest.raises(params.SteeringError) as e:
                registry.parse(p.body["steering"])
            assert f"steering.{e.value.field}" == p.refused_field


def test_a_second_answer_that_differs_is_seen() -> None:
    first = good_answer(entropy_plans()[0])
    again = copy.deepcopy(first)
    assert repeat_problems(first, again) == []
    again[0]["steering"]["entropy_nats"][3] += 0.002
    assert repeat_problems(first, again) == ["choice 0: entropies differ by up to 0.002 nats"]
    assert repeat_problems(first, []) != []
    del again[0]["steering"]["entropy_nats"][3]
    assert len(repeat_problems(first, again)) == 1


def test_chunks_are_gathered_to_what_a_whole_answer_holds() -> None:
    p = next(p for p in entropy_plans() if p.body["stream"] and p.body["n"] == 2)
    wanted = good_answer(p)
    events = []
    for i, choice in enumerate(wanted):
        for start, stop in ((0, 1), (1, 4)):
            part = {k: v[start:stop] if isinstance(v, list) else v for k, v in choice["steering"].items()}
            closing = {"finish_reason": "stop"} if stop == 4 else {}
            events.append({"choices": [{"index": i, "token_ids": [7] * (stop - start), "steering": part} | closing]})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    assert gathered(p, text) == wanted
