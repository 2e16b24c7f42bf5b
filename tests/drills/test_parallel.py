"""The eyes of the parallel drill: answers as they must be pass, and each fault, made by hand, is seen."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steerdec.telemetry.loan import Telemetry
from tests.drills.parallel import CHAT_TEMPLATE, FORMS, Seen, drill
from tests.drills.parallel_requests import CLOSE, COMPLETIONS, OPEN, POLICIES, SCOPES, THRESHOLD_NATS, planned
from tests.support.expected_records import Draws, Findings, Returned, Truth
from tests.support.tiny_models import saved, tiny_model, tiny_tokenizer

TOKENS = 24


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(saved(tiny_model(1, tied=False, hidden=128), tmp_path_factory.mktemp("model")))


def answered(truth: Truth, seed: int, **steering: Any) -> Returned:
    """What a right server returns, drawn token by token from the steered distribution."""
    whole = {"threshold_nats": THRESHOLD_NATS, "telemetry": "tokens", "probe_temperature": "applied"} | steering
    one = Returned(f"sequence {seed}", [OPEN, 40 + seed % 50, 60], 0.9, seed, whole, finished=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TOKENS):
        one.tokens.append(0)  # the logits of a token do not depend on it
        _, steered = truth.decided(one, truth.logits(one.prompt, one.tokens))
        p = torch.softmax(steered[-1] / one.temperature, -1)
        one.tokens[-1] = int(torch.multinomial(p, 1, generator=generator))
    outcome, _ = truth.decided(one, truth.logits(one.prompt, one.tokens))
    h, fork, t, probe = (column.numpy() for column in outcome[:4])
    telemetry = Telemetry(
        h.astype("f4"), t.astype("f4"), fork, probe.astype("f4"), ~fork & False, THRESHOLD_NATS, probed=True
    )
    one.records, one.summary = telemetry.lists(), telemetry.summary()
    return one


@pytest.fixture(scope="module")
def pair(truth: Truth) -> tuple[Returned, Returned]:
    steering = {"fork_temperature": 1.6, "other_temperature": 0.6}
    return answered(truth, 7, **steering), answered(truth, 8, **steering)


def wrong_of(truth: Truth, *answers: Returned) -> Findings:
    found = Findings()
    for one in answers:
        truth.compare(one, found)
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.get("policy", "split"))
def test_a_right_answer_passes(truth: Truth, policy: dict[str, Any]) -> None:
    delimiters = {"thinking_start_id": OPEN, "thinking_end_id": CLOSE}
    answers = [answered(truth, 3, **policy), answered(truth, 4, **policy, scope="thinking", **delimiters)]
    found = wrong_of(truth, *answers)
    assert (found.wrong, found.wrong_records, found.records) == ([], 0, 2 * TOKENS)
    assert abs(found.steered.deviations) < 4


def test_a_client_that_left_is_checked_as_far_as_it_read(truth: Truth, pair: tuple[Returned, Returned]) -> None:
    one = copy.deepcopy(pair[0])
    one.finished, one.summary = False, {}
    one.tokens = one.tokens[:9]
    one.records = {name: column[:9] for name, column in one.records.items()}
    assert wrong_of(truth, one).wrong == []
    one.records["entropy_nats"].pop()
    assert len(wrong_of(truth, one).wrong) == 1


def shifted(one: Returned, other: Returned) -> None:
    """The records of one token later: as if a position were off by one."""
    one.records = {name: [*column[1:], column[-1]] for name, column in one.records.items()}


def strangers(one: Returned, other: Returned) -> None:
    one.records = other.records


def lost(one: Returned, other: Returned) -> None:
    for name in ("entropy_nats", "temperature", "probe_entropy_nats"):
        one.records[name][5] = None
    one.records["fork"][5] = False


def cut(one: Returned, other: Returned) -> None:
    one.records = {name: column[:-1] for name, column in one.records.items()}


def flipped(one: Returned, other: Returned) -> None:
    one.records["fork"][3] = not one.records["fork"][3]


def warmer(one: Returned, other: Returned) -> None:
    one.records["temperature"][3] *= 1.01


def entropy_off(one: Returned, other: Returned) -> None:
    one.records["entropy_nats"][3] += 1e-3


def other_token(one: Returned, other: Returned) -> None:
    """Every record is of the text that was sampled, but another text was returned."""
    one.tokens[2] = (one.tokens[2] + 1) % 256


# The fault, how many records are wrong, and whether the summary is wrong as well.
FAULTS: dict[Callable[[Returned, Returned], None], range] = {
    shifted: range(TOKENS // 2, TOKENS + 1),
    strangers: range(TOKENS // 2, TOKENS + 1),
    lost: range(1, 2),
    cut: range(1, 2),
    flipped: range(1, 2),
    warmer: range(1, 2),
    entropy_off: range(1, 2),
    other_token: range(TOKENS // 2, TOKENS + 1),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_record_is_seen(
    truth: Truth, pair: tuple[Returned, Returned], fault: Callable[[Returned, Returned], None]
) -> None:
    one, other = copy.deepcopy(pair)
    fault(one, other)
    found = wrong_of(truth, one)
    assert found.wrong_records in FAULTS[fault]
    assert found.wrong
    assert "WRONG" not in found.wrong[0]
    assert one.name in found.wrong[0]


@pytest.mark.parametrize("name", ["tokens", "forks", "mean_entropy_nats"])
def test_a_wrong_summary_is_seen(truth: Truth, pair: tuple[Returned, Returned], name: str) -> None:
    one = copy.deepcopy(pair[0])
    one.summary[name] += 1
    assert len(wrong_of(truth, one).wrong) == 1


def test_telemetry_that_was_not_requested_is_seen(truth: Truth, pair: tuple[Returned, Returned]) -> None:
    for steering in (None, {"telemetry": "none"}):
        one = copy.deepcopy(pair[0])
        one.steering = steering
        assert wrong_of(truth, one).wrong == [f"{one.name}: has telemetry that was not requested"]


def test_a_token_that_steering_had_removed_is_seen(truth: Truth) -> None:
    """As if a rank had sampled from the logits before steering."""
    one = answered(truth, 5, policy="uniform_top_k", k=2)
    forks = [i for i, fork in enumerate(one.records["fork"]) if fork]
    one.tokens[forks[-1]] = int(truth.logits(one.prompt, one.tokens)[forks[-1]].argmin())
    assert any("steering had removed" in line for line in wrong_of(truth, one).wrong)


def test_tokens_that_were_drawn_unsteered_are_seen(truth: Truth) -> None:
    right = [answered(truth, seed, other_temperature=0.3, fork_temperature=0.3) for seed in range(6)]
    assert abs(wrong_of(truth, *right).steered.deviations) < 4
    unsteered = [answered(truth, seed) for seed in range(6)]
    for one in unsteered:
        assert one.steering is not None
        one.steering |= {"other_temperature": 0.3, "fork_temperature": 0.3}
    found = wrong_of(truth, *unsteered)
    assert found.steered.deviations < -5
    seen = Seen(processes=["EngineCore"], engine_tokens={"0": 1}, found=found)
    assert any("steered tokens are" in fault for fault in seen.faults(FORMS["tp2"]))


def right_run() -> Seen:
    draws = Draws(tokens=10, difference_nats=1.0, variance=4.0)
    found = Findings(tokens=20, records=10, steered=draws, plain=draws)
    return Seen(Counter(plain=1), list(FORMS["dp2"].processes), {"0": 10, "1": 10}, found=found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"processes": ["EngineCore_DP0", "EngineCore_DP1", "Worker"]}, "no process Worker"),
        ({"engine_tokens": {"0": 20, "1": 0}}, "tokens of each engine"),
        ({"engine_tokens": {"0": 20}}, "tokens of each engine"),
        ({"found": Findings()}, "0 of 0 records"),
    ],
)
def test_a_form_that_did_not_take_part_is_seen(change: dict[str, Any], told: str) -> None:
    seen = right_run()
    assert seen.faults(FORMS["dp2"]) == []
    for name, value in change.items():
        setattr(seen, name, value)
    assert told in seen.faults(FORMS["dp2"])[0]


def test_ranks_outside_of_ray_are_seen() -> None:
    """As if vLLM had started its own workers after all."""
    seen, form = right_run(), FORMS["tp2"].in_ray()
    seen.processes, seen.engine_tokens = ["EngineCore", "ray::RayWorkerProc.run", "Worker_TP1"], {"0": 20}
    assert seen.faults(form) == ["no process ray::RayWorkerProc.run"]
    seen.processes.append("ray::RayWorkerProc.run")
    assert seen.faults(form) == []


def test_the_plan_mixes_everything_and_repeats() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    plan = planned(120, "model", tokenizer, 0)
    assert plan == planned(120, "model", tokenizer, 0)
    assert plan != planned(120, "model", tokenizer, 1)
    steered = [p.body["steering"] for p in plan if "steering" in p.body]
    assert {s.get("policy", "split") for s in steered} == {p.get("policy", "split") for p in POLICIES}
    assert {s.get("scope", "all") for s in steered} == set(SCOPES)
    assert {p.body["n"] for p in plan} == {1, 2, 3}
    assert {p.body["stream"] for p in plan} == {p.path == COMPLETIONS for p in plan} == {True, False}
    assert {p.leave_after is None for p in plan} == {True, False}
    assert len(steered) < len(plan)


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", ["tp2", "pp2", "dp2"])
def test_a_real_server_of_each_form(form: str, tmp_path: Path) -> None:
    assert drill(FORMS[form], tmp_path, requests=40, seed=1).faults(FORMS[form]) == []


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_a_real_server_whose_ranks_are_actors_of_ray(tmp_path: Path) -> None:
    """Installs Ray under build/ the first time, from the package index."""
    form = FORMS["tp2"].in_ray()
    assert drill(form, tmp_path, requests=40, seed=1).faults(form) == []
