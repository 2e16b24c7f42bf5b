"""`SteeredLLM` with the real small model, in the engine of tests/vllm_plugin/test_engine.py."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError

from steerdec.offline import SteeredLLM, SteeredOutput
from steerdec.offline.engine import SteeredEngine
from steerdec.policies.registry import parse
from steerdec.policies.split.fields import Split
from steerdec.steering.params import SteeringError
from steerdec.telemetry import lanes as telemetry
from tests.support.memory_episodes import assert_told
from tests.support.offline_examples import API, examples
from tests.vllm_plugin.test_engine import EVERY_LOGPROB, PROMPTS, as_vllms_own, entropies_from_logprobs, run

pytestmark = pytest.mark.engine

STEERING: dict[str, Any] = {"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": 0.6}
QUESTION = [{"role": "user", "content": "Name three animals."}]
QUIET: dict[str, Any] = {"use_tqdm": False}


def sampling(**options: Any) -> SamplingParams:
    return SamplingParams(**({"temperature": 1.0, "max_tokens": 6, "seed": 3} | options))


def tokens(outputs: list[SteeredOutput]) -> list[list[int]]:
    """The tokens of each sequence."""
    return [list(one.token_ids) for output in outputs for one in output.outputs]


def assert_alike(some: list[SteeredOutput], others: list[SteeredOutput]) -> None:
    """The same tokens, and the same records up to what another batch changes in the last digits."""
    assert tokens(some) == tokens(others)
    for output, other in zip(some, others, strict=True):
        for one, two in zip(output.outputs, other.outputs, strict=True):
            assert one.steering is not None
            assert two.steering is not None
            np.testing.assert_allclose(one.steering.entropy_nats, two.steering.entropy_nats, atol=1e-4)


def assert_recorded(outputs: list[SteeredOutput]) -> None:
    """Each sequence has one record per returned token, and they fit each other and the steering."""
    for output in outputs:
        for one in output.outputs:
            assert one.steering is not None
            assert len(one.steering.entropy_nats) == len(one.token_ids) > 0
            assert one.steering.fork.tolist() == [h > 0.6 for h in one.steering.entropy_nats]
            assert one.steering.temperature.tolist() == [1.5 if fork else 0.5 for fork in one.steering.fork]


@pytest.fixture
def llm(steered_llm: SteeredLLM) -> LLM:
    return as_vllms_own(steered_llm)


@pytest.fixture
def pool(steered_llm: SteeredLLM) -> telemetry.LanePool:
    return steered_llm.llm_engine.front_end.pool  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _nothing_is_left(pool: telemetry.LanePool, steered_llm: SteeredLLM) -> Iterator[None]:
    before = pool.lent
    yield
    assert pool.lent == before
    assert not steered_llm.llm_engine.has_unfinished_requests()


@contextmanager
def only(lanes: int, pool: telemetry.LanePool) -> Iterator[None]:
    """As if there were no more lanes than these."""
    held = pool.lend(len(pool._free) - lanes)
    try:
        yield
    finally:
        pool.take_back(held, aborted=False)


# What comes back ---------------------------------------------------------------------------------


def test_entropies_agree_with_the_full_logprobs_of_the_same_steps(steered_llm: SteeredLLM) -> None:
    every = [sampling(seed=i, **EVERY_LOGPROB) for i in range(4)]
    outputs = steered_llm.generate(PROMPTS, every, steering=Split(**STEERING), **QUIET)
    assert_recorded(outputs)
    for output in outputs:
        assert isinstance(output, RequestOutput)
        (one,) = output.outputs
        assert one.steering is not None
        np.testing.assert_allclose(one.steering.entropy_nats, entropies_from_logprobs(one), atol=1e-4)
        summary = one.steering.summary()
        assert summary["tokens"] == len(one.token_ids)
        assert summary["forks"] == sum(one.steering.fork)
        assert summary["threshold_nats"] == pytest.approx(0.6)
    assert any(one.steering.fork.any() for output in outputs for one in output.outputs if one.steering)


def test_a_notebook_shows_each_token_with_its_entropy(steered_llm: SteeredLLM) -> None:
    outputs = steered_llm.generate(PROMPTS[:2], sampling(n=2, seed=5), steering=[STEERING, None], **QUIET)
    html = outputs[0]._repr_html_()
    assert html is not None
    assert html.count("forks (underlined)") == 2
    for one in outputs[0].outputs:
        colored = one.colored()
        assert colored is not None
        assert "".join(colored.texts) == one.text
        assert html.count(one._repr_html_() or "nothing") == 1
        assert pickle.loads(pickle.dumps(one)).tokenizer is None
    assert outputs[1]._repr_html_() is None


def test_steering_may_be_an_object_a_dict_json_or_an_extra_argument(steered_llm: SteeredLLM, llm: LLM) -> None:
    given = ['{"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": 0.6}', STEERING, Split(**STEERING)]
    params = sampling()
    outputs = steered_llm.generate(PROMPTS[1:2] * 3, params, steering=given, **QUIET)
    assert params.extra_args is None, "the caller's own parameters"
    extra = sampling(extra_args={"steering": STEERING})
    outputs += steered_llm.generate(PROMPTS[1:2], extra, **QUIET)
    assert_recorded(outputs)
    assert_alike(outputs[1:], outputs[:1] * 3)
    (as_before,) = run(llm, PROMPTS[1:2], [extra])
    assert as_before.token_ids == outputs[0].outputs[0].token_ids


@pytest.mark.parametrize("seed", [50, None])
def test_sequences_of_one_request_have_a_lane_each(steered_llm: SteeredLLM, seed: int | None) -> None:
    params = sampling(n=4, seed=seed, ignore_eos=True, **EVERY_LOGPROB)
    outputs = steered_llm.generate(PROMPTS[1:2], params, steering=STEERING, **QUIET)
    assert_recorded(outputs)
    assert len({tuple(one.token_ids) for one in outputs[0].outputs}) > 1
    for one in outputs[0].outputs:
        assert one.steering is not None
        np.testing.assert_allclose(one.steering.entropy_nats, entropies_from_logprobs(one), atol=1e-4)
    assert params.seed == seed


MEMORY: dict[str, Any] = {
    "select": "quantile",
    "quantile": 0.6,
    "hysteresis": 0.2,
    "threshold_nats": 0.5,
    "fork_temperature": 2.5,
    "guard_mean_entropy_nats": 2.0,
    "guard_window_tokens": 8,
}


@pytest.mark.parametrize("telemetry", ["tokens", "none"])
def test_a_moving_threshold_and_a_guard_follow_each_sequence(steered_llm: SteeredLLM, telemetry: str) -> None:
    params = sampling(n=2, seed=None, temperature=0.8, max_tokens=24, ignore_eos=True)
    steering = MEMORY | {"telemetry": telemetry}
    outputs = steered_llm.generate(PROMPTS, params, steering=steering, **QUIET)
    assert params.seed is None
    assert params.extra_args is None
    if telemetry == "none":
        return
    found = [one.steering for output in outputs for one in output.outputs if one.steering is not None]
    assert len(found) == 2 * len(PROMPTS)
    for one in found:
        assert_told(one.summary() | one.lists(), MEMORY)
    assert any(one.guard_token is not None for one in found)
    assert len({one.thresholds_nats.tolist()[-1] for one in found if one.thresholds_nats is not None}) > 4


def test_without_our_front_end_several_sequences_with_a_memory_need_a_seed(llm: LLM) -> None:
    extra = {"extra_args": {"steering": MEMORY}}
    with pytest.raises(VLLMValidationError, match="need a seed with n = 2"):
        run(llm, PROMPTS[:1], [sampling(n=2, seed=None, **extra)])
    params = sampling(temperature=0.8, **extra)
    again = [run(llm, PROMPTS[:1], [params])[0].token_ids for _ in range(2)]
    assert again[0] == again[1], "parameters that are used again begin with an empty memory"


def test_plain_requests_beside_steered_ones_are_vllms_own(steered_llm: SteeredLLM, llm: LLM) -> None:
    params = [sampling(seed=i, top_p=0.95) for i in range(4)]
    alone = [list(output.token_ids) for output in run(llm, PROMPTS, params)]
    mixed = steered_llm.generate(PROMPTS, params, steering=[None, STEERING, None, STEERING], **QUIET)
    plain = steered_llm.generate(PROMPTS, params, **QUIET)
    assert tokens(plain) == alone
    assert tokens(mixed)[::2] == alone[::2]
    assert all(output.outputs[0].steering is None for output in plain + mixed[::2])
    assert_recorded(mixed[1::2])


def test_telemetry_none_steers_without_a_lane(steered_llm: SteeredLLM, pool: telemetry.LanePool) -> None:
    with only(0, pool):
        quiet = steered_llm.generate(PROMPTS[:1], sampling(), steering=STEERING | {"telemetry": "none"}, **QUIET)
    assert quiet[0].outputs[0].steering is None
    recorded = steered_llm.generate(PROMPTS[:1], sampling(), steering=STEERING, **QUIET)
    assert tokens(quiet) == tokens(recorded)


def test_records_end_where_a_stop_string_ends_the_answer(steered_llm: SteeredLLM) -> None:
    params = [sampling(seed=i, max_tokens=40, stop=["e", "a"]) for i in range(4)]
    outputs = steered_llm.generate(PROMPTS, params, steering=STEERING, **QUIET)
    assert_recorded(outputs)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    assert {output.outputs[0].stop_reason for output in outputs} <= {"e", "a"}


def test_a_chat_is_steered_as_its_prompt_is(steered_llm: SteeredLLM, llm: LLM) -> None:
    outputs = steered_llm.chat([QUESTION, QUESTION], sampling(), steering=[STEERING, None], **QUIET)
    assert_recorded(outputs[:1])
    assert outputs[1].outputs[0].steering is None
    (as_before,) = llm.chat(QUESTION, sampling(extra_args={"steering": STEERING}), **QUIET)
    assert as_before.outputs[0].token_ids == outputs[0].outputs[0].token_ids


def test_the_engines_default_has_telemetry_where_it_applies(
    steered_llm: SteeredLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = steered_llm.llm_engine
    settings = engine.front_end.settings.model_copy(update={"default": parse(STEERING)})
    monkeypatch.setattr(engine, "front_end", replace(engine.front_end, settings=settings))
    params = [sampling(), sampling(temperature=0.0)]
    steered, greedy = steered_llm.generate(PROMPTS[:2], params, **QUIET)
    assert_recorded([steered])
    assert greedy.outputs[0].steering is None


def test_a_scope_takes_the_models_own_delimiters(steered_llm: SteeredLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = steered_llm.llm_engine
    dog, cat = (steered_llm.get_tokenizer().encode(word)[0] for word in (" dog", " cat"))
    monkeypatch.setattr(engine, "front_end", replace(engine.front_end, delimiters=(dog, cat)))
    outputs = steered_llm.generate(["A dog", "A cat"], sampling(), steering=STEERING | {"scope": "thinking"}, **QUIET)
    inside, outside = (output.outputs[0].steering for output in outputs)
    assert inside is not None
    assert outside is not None
    assert set(inside.temperature) <= {1.5, 0.5}
    assert set(outside.temperature) == {1.0}


def test_the_example_of_the_documentation_runs(
    steered_llm: SteeredLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("steerdec.offline.SteeredLLM", lambda *_, **__: steered_llm)
    exec(compile(examples(API)[0], str(API), "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert out.count("mean_entropy_nats") == 4
    assert " fork 1.3" in out


# Lanes -------------------------------------------------------------------------------------------


def test_more_requests_than_lanes_wait(steered_llm: SteeredLLM, pool: telemetry.LanePool) -> None:
    params = [sampling(seed=i, max_tokens=2 + i, n=1 + i % 2) for i in range(6)]
    expected = steered_llm.generate(PROMPTS[:1] * 6, params, steering=STEERING, **QUIET)
    extra = {"extra_args": {"steering": STEERING}}
    waiting = [sampling(seed=i, max_tokens=2 + i, n=1 + i % 2, **extra) for i in range(6)]
    with only(4, pool):
        steered_llm.enqueue(PROMPTS[:1] * 6, waiting, **QUIET)
        engine: SteeredEngine = steered_llm.llm_engine
        assert engine.engine.get_num_unfinished_requests() == 4
        assert engine.get_num_unfinished_requests() == 9
        outputs = steered_llm.wait_for_completion(**QUIET)
    assert_recorded(outputs)
    assert_alike(outputs, expected)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_aborted_requests_give_their_lanes_back(
    steered_llm: SteeredLLM,
    pool: telemetry.LanePool,
    monkeypatch: pytest.MonkeyPatch,
    all_of_them: bool,
) -> None:
    monkeypatch.setattr(telemetry, "REST_AFTER_ABORT_S", 0.5)
    params = sampling(n=2, max_tokens=12, ignore_eos=True, extra_args={"steering": STEERING})
    with only(4, pool):
        ids = steered_llm.enqueue(PROMPTS, params, **QUIET)
        engine: SteeredEngine = steered_llm.llm_engine
        engine.step()
        engine.abort_request(ids if all_of_them else [ids[0], ids[3]], internal=True)
        assert engine.get_num_unfinished_requests() == (0 if all_of_them else 4)
        rest = steered_llm.wait_for_completion(**QUIET)
        assert_recorded(rest)
        assert [len(output.outputs[0].token_ids) for output in rest] == ([] if all_of_them else [12, 12])
        again = steered_llm.generate(PROMPTS[:2], params, **QUIET)  # these may have to wait for lanes that rest
        assert_recorded(again)


def test_an_interrupted_call_leaves_nothing_in_the_engine(
    steered_llm: SteeredLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(3))
    original = steered_llm.llm_engine.engine.step

    def interrupted() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return original()

    with monkeypatch.context() as patched:
        patched.setattr(steered_llm.llm_engine.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            steered_llm.generate(PROMPTS, sampling(), steering=[STEERING, STEERING, None, None], **QUIET)
    outputs = steered_llm.generate(PROMPTS[:1], sampling(), steering=STEERING, **QUIET)
    assert len(outputs) == 1, "vLLM alone would also answer what was interrupted"
    assert_recorded(outputs)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steering", "words"),
    [
        ({}, {"fork_temperature": -1}, "steering.fork_temperature: -1 must be greater"),
        ({}, "{", "steering: is not valid JSON"),
        ({"temperature": 0.0}, STEERING, "steering: needs a sampled request, but its temperature is 0"),
        ({"n": 257}, STEERING, 'steering.telemetry: must be "none" with n = 257; with telemetry n is at most 256'),
        ({"extra_args": {"steering": STEERING}}, STEERING, "steering: is given twice: as `steering` and in extra_args"),
        ({}, {"scope": "answer"}, "steering.thinking_start_id: must be given"),
        ({"presence_penalty": 0.5}, STEERING, "V1 model runner"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_one_line(
    steered_llm: SteeredLLM, options: dict[str, Any], steering: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        steered_llm.generate(PROMPTS[:2], sampling(**options), steering=steering, **QUIET)
    assert "\n" not in str(refusal.value)


def test_lists_of_different_lengths_are_refused(steered_llm: SteeredLLM) -> None:
    with pytest.raises(ValueError, match="steering: 1 objects are given for 2 sampling parameters"):
        steered_llm.generate(PROMPTS[:2], [sampling()] * 2, steering=[STEERING], **QUIET)
    with pytest.raises(VLLMValidationError, match=r"lengths of prompts \(2\) and params \(1\)"):
        steered_llm.generate(PROMPTS[:2], sampling(), steering=[STEERING], **QUIET)


def test_one_refused_request_takes_the_whole_call_back(steered_llm: SteeredLLM, pool: telemetry.LanePool) -> None:
    greedy = [sampling(), sampling(temperature=0.0)]
    with pytest.raises(SteeringError, match="greedy"):
        steered_llm.generate(PROMPTS[:2], greedy, steering=STEERING, **QUIET)
    assert not steered_llm.llm_engine.has_unfinished_requests()
    # vLLM refuses the second one, which has to wait, only when its turn comes.
    no_token = [sampling(), sampling(logit_bias={10**6: 1.0})]
    with only(1, pool), pytest.raises(VLLMValidationError, match="logit_bias"):
        steered_llm.generate(PROMPTS[:2], no_token, steering=STEERING, **QUIET)
