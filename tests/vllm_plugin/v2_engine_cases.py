"""Steering in vLLM's whole V2 engine: scheduler, KV cache, runner, sampler, detokenizer, and our Triton kernels.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter.

Prompts are prefilled in parts of at most 32 tokens, the prefix cache is on, and there are too few blocks for all
requests, so that some are preempted. Every row of logits that the processor gives back is held to the reference.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.scheduler import Scheduler

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_engine import CLOSE, OPEN, Asked, Engine

SCOPED = {"thinking_start_id": OPEN, "thinking_end_id": CLOSE}
STEERINGS: list[dict[str, Any]] = [
    {"fork_temperature": 1.7, "other_temperature": 0.5, "threshold_nats": 1.2},
    {"fork_temperature": 0.0, "other_temperature": 2.0, "threshold_nats": 1.2},
    {"select": "random", "fork_rate": 0.4, "fork_temperature": 0.5},
    {"select": "first", "first_tokens": 5, "fork_temperature": 1.9},
    {"select": "all", "fork_temperature": 1.4},
    {"policy": "dynatemp"},
    {"policy": "edt"},
    {"policy": "entropy_target", "delta_nats": 0.3},
    {"policy": "p_less", "fork_temperature": 2.0, "other_temperature": 0.6},
    {"policy": "uniform_top_k", "k": 7, "threshold_nats": 1.2},
    {"select": "all", "fork_temperature": 0.6, "scope": "thinking"} | SCOPED,
    {"fork_temperature": 1.6, "threshold_nats": 1.0, "scope": "answer"} | SCOPED,
]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"top_p": 0.8},
    {"top_k": 12},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.5},
    {"logprobs": 3},
    {"allowed_token_ids": [OPEN, CLOSE, *range(64, 120)]},
]


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=257) as file:
        yield file


def crowded(folder: Path, lanes: telemetry.LaneFile) -> Engine:
    """An engine with too few blocks for its requests, which prefills long prompts in parts."""
    few: dict[str, Any] = {"num_gpu_blocks_override": 9, "block_size": 32, "max_num_seqs": 8, "max_model_len": 128}
    parts = {"max_num_batched_tokens": 32, "enable_chunked_prefill": True}
    return Engine(v2_engine.started(folder, lanes, **few, **parts), lanes)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, lane_file: telemetry.LaneFile) -> Engine:
    return crowded(tmp_path_factory.mktemp("v2") / "model", lane_file)


def ask_at_random(engine: Engine, rng: random.Random) -> Asked:
    shared = [OPEN, *[70] * 33] if rng.random() < 0.4 else []  # a whole block of the prefix cache
    prompt = [*shared, *(rng.choice([OPEN, CLOSE, *range(64, 120)]) for _ in range(rng.randint(1, 40)))]
    steering = rng.choice(STEERINGS) if rng.random() < 0.8 else None
    sampling = {"seed": rng.randrange(2**40), "max_tokens": rng.randint(1, 24)} | rng.choice(SAMPLINGS)
    return engine.ask(prompt, steering, **sampling)


def episode(engine: Engine, requests: int, seed: int) -> tuple[list[Asked], int]:
    """A batch that requests enter and leave, a third of them by an abort; and how often one was preempted."""
    rng, live, done, preempted = random.Random(seed), [], [], 0
    original = Scheduler._preempt_request

    def counted(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal preempted
        preempted += 1
        return original(scheduler, *args, **kwargs)

    Scheduler._preempt_request = counted
    try:
        with engine.watched():
            while len(done) + len(live) < requests or live:
                while len(live) < 8 and len(done) + len(live) < requests and rng.random() < 0.7:
                    live.append(ask_at_random(engine, rng))
                engine.step()
                for one in [one for one in live if one.finished or (len(one.tokens) > 1 and rng.random() < 0.04)]:
                    if not one.finished:
                        engine.abort(one)
                    live.remove(one)
                    done.append(one)
    finally:
        Scheduler._preempt_request = original
    return done, preempted


def judged(engine: Engine, done: list[Asked]) -> tuple[list[str], int]:
    """(what is wrong, tokens compared); lanes go back."""
    recorded = [one for one in done if one.lane is not None]
    wrong = [line for one in recorded for line in engine.wrong_records(one)]
    for one in recorded:
        engine.pool.take_back([one.lane], aborted=one.finished == "abort")  # type: ignore[list-item]
        one.lane = None
    return wrong, sum(len(one.tokens) for one in recorded)


def test_mixed_batches_are_steered_and_recorded_as_each_requests_own_history_asks(engine: Engine) -> None:
    engine.rows = engine.wrong_rows = 0
    done, preempted = episode(engine, 60, seed=1)
    wrong, tokens = judged(engine, done)
    assert engine.wrong_rows == 0
    assert wrong == []
    assert tokens > 300
    assert engine.rows > 300
    assert preempted > 0, "nothing was preempted, so nothing was shown"
    assert sum(one.finished == "abort" for one in done) >= 10


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
