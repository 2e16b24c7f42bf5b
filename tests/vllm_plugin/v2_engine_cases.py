"""Steering in vLLM's whole V2 engine: scheduler, KV cache, runner, sampler, detokenizer, and our Triton kernels.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter.

Prompts are prefilled in parts of at most 32 tokens, the prefix cache is on, and there are too few blocks for all
requests, so that some are preempted. Every row of logits that the processor gives back is held to the reference.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
from collections.abc import Iterator

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from steerdec.telemetry import lanes as telemetry
from tests.support import batched
from tests.support.v2_engine import OPEN, Engine
from tests.support.v2_episodes import STEERINGS, crowded, episode


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=257) as file:
        yield file


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, lane_file: telemetry.LaneFile) -> Engine:
    return crowded(tmp_path_factory.mktemp("v2") / "model", lane_file)


def test_mixed_batches_are_steered_and_recorded_as_each_requests_own_history_asks(engine: Engine) -> None:
    engine.rows = engine.wrong_rows = 0
    done = episode(engine, seed=1, requests=60)
    assert engine.wrong_rows == 0
    assert done.wrong == []
    assert done.tokens > 300
    assert engine.rows > 300
    assert done.preempted > 0, "nothing was preempted, so nothing was shown"
    assert done.resumed_with_memory, "no request with a memory was preempted"
    assert done.stopped > 0, "the guard stopped nothing"
    assert done.aborted >= 10


def test_programs_that_the_interpreter_runs_together_do_what_they_do_one_by_one(engine: Engine) -> None:
    """`tests/support/batched.py` itself, on every kernel of vLLM's and ours that mixed batches launch."""
    with batched.compared() as counts:
        episode(engine, seed=3, requests=10)
    assert {"measure", "_decide_step", "scale", "_gumbel_sample_kernel", "_topk_topp_kernel"} <= set(counts)
    assert {name: count for name, count in counts.items() if name.startswith("not ") and count} == {}


def test_a_wrong_record_would_be_found(engine: Engine) -> None:
    with engine.watched():
        one = engine.ask([70, 71], STEERINGS[0], max_tokens=6)
        engine.run()
    assert engine.wrong_records(one) == []
    one.expected = {i + 1: value for i, value in one.expected.items()} | {0: one.expected[5]}
    assert len(engine.wrong_records(one)) >= 4


def test_zero_temperature_everywhere_is_greedy(engine: Engine) -> None:
    prompts = [[OPEN, *range(64, 64 + n)] for n in (1, 20, 40)]
    greedy = [engine.ask(p, None, temperature=0.0, max_tokens=20) for p in prompts]
    engine.run()
    zero = {"fork_temperature": 0.0, "other_temperature": 0.0}
    steered = [engine.ask(p, zero, temperature=1.0, seed=i, max_tokens=20) for i, p in enumerate(prompts)]
    engine.run()
    assert [one.tokens for one in steered] == [one.tokens for one in greedy]
    assert all(len(one.tokens) == 20 for one in steered)


def test_identity_gives_the_baselines_tokens(engine: Engine) -> None:
    same = {"fork_temperature": 0.8, "other_temperature": 0.8, "threshold_nats": 1.0}
    plain, steered = (
        [engine.ask([64 + i], s, seed=i, max_tokens=12, record=False) for i in range(8)] for s in (None, same)
    )
    engine.run()
    assert [one.tokens for one in steered] == [one.tokens for one in plain]


def test_sequences_of_one_request_have_a_lane_each(engine: Engine) -> None:
    lanes = engine.pool.lend(3)
    extra = {
        "steering": {"fork_temperature": 1.4, "threshold_nats": 1.0},
        v2_engine.request.LANES_ARG: [word for lane in lanes for word in (lane.index, lane.generation)],
        v2_engine.request.BASE_SEED_ARG: 50,
    }
    params = SamplingParams(
        n=3, seed=50, max_tokens=8, extra_args=extra, logprobs=-1, ignore_eos=True, detokenize=False
    )
    outputs = engine.llm.generate([{"prompt_token_ids": [70, 71]}], params, use_tqdm=False)[0].outputs
    assert len({tuple(o.token_ids) for o in outputs}) > 1
    for output in outputs:
        logp = [np.array([entry.logprob for entry in step.values()]) for step in output.logprobs]
        expected = [-(np.exp(z) * z)[np.isfinite(z)].sum() for z in logp]
        np.testing.assert_allclose(lanes[output.index].read(0, 8).entropy_nats, expected, atol=1e-4)


def test_a_grammar_and_bad_words_are_steered_over_what_is_left(engine: Engine) -> None:
    steering = {"select": "all", "fork_temperature": 1.5}
    words = ("ab", "ac", "b")
    grammar = engine.ask(
        *([70], steering),
        max_tokens=4,
        ignore_eos=False,
        structured_outputs=StructuredOutputsParams(choice=list(words)),
    )
    with engine.watched():
        engine.run()
    tokenizer = engine.llm.get_tokenizer()
    assert tokenizer.decode([t for t in grammar.tokens if t != tokenizer.eos_token_id]) in words
    assert engine.wrong_records(grammar) == []
    assert grammar.expected[0][0] < np.log(len(tokenizer)) / 2, "the grammar was not in the logits that were measured"
    engine.llm.llm_engine.reset_prefix_cache()
    bad = SamplingParams(
        temperature=1.0, seed=1, max_tokens=8, bad_words=["a", "b"], extra_args={"steering": steering}, ignore_eos=True
    )
    (done,) = engine.llm.generate([{"prompt_token_ids": [70]}], bad, use_tqdm=False)
    assert not {"a", "b"} & set(done.outputs[0].text)
