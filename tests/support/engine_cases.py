"""Engines set up differently from the tests' usual one, each a program: `python -m tests.support.engine_cases NAME`."""

from __future__ import annotations

import sys
from typing import Any

import tests.conftest  # noqa: F401  vLLM's settings, before vLLM is imported

# isort: split
import numpy as np
import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.core.sched.scheduler import Scheduler

from steerdec import models
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin.request import IDENTITY_ARG
from tests.vllm_plugin.test_engine import CAPACITY, EVERY_LOGPROB, PROMPTS, Asked, engine, entropies_from_logprobs, run

DRAFT = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


def preempted(file: telemetry.LaneFile) -> None:
    """A request that was preempted and resumed has one record a token, and those of an undisturbed run.

    Also if what is done to its tokens depends on those before the preemption.
    """
    times: list[Any] = []
    remembered: list[int] = []  # tokens of requests with a memory that were preempted
    original = Scheduler._preempt_request

    def counted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        times.append(request)
        if IDENTITY_ARG in request.sampling_params.extra_args:
            remembered.append(request.num_output_tokens)
        return original(self, request, *args, **kwargs)

    Scheduler._preempt_request = counted
    pool = telemetry.LanePool(file)
    few_blocks = {"num_gpu_blocks_override": 8, "max_model_len": 128, "max_num_batched_tokens": 256}
    llm = engine(models.fetch(), file, **few_blocks)
    sampling: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40, "ignore_eos": True}
    guard = {"guard_mean_entropy_nats": 1.5, "guard_window_tokens": 12}
    moving = {"select": "quantile", "threshold_nats": 0.6, "hysteresis": 0.2, "fork_temperature": 1.6} | guard
    steerings = [{"fork_temperature": 1.3, "threshold_nats": 0.6}, moving, moving, moving] * 2

    alone = [Asked(pool, steering, seed=i, **sampling) for i, steering in enumerate(steerings)]
    calm = [
        output
        for i in range(0, 8, 2)  # two fit
        for output in run(llm, [PROMPTS[i % 4], PROMPTS[(i + 1) % 4]], [a.params for a in alone[i : i + 2]])
    ]
    assert not times
    together = [Asked(pool, steering, seed=i, **sampling) for i, steering in enumerate(steerings)]
    crowded = run(llm, PROMPTS * 2, [a.params for a in together])
    assert len(times) >= 2, "nothing was preempted, so nothing was shown"
    assert max(remembered) > 3, "no request with a memory was preempted"
    for a, b, one, other in zip(alone, together, calm, crowded, strict=True):
        assert one.token_ids == other.token_ids
        calmly, crowdedly = a.lane.read(0, 40), b.lane.read(0, 40)
        np.testing.assert_allclose(calmly.entropy_nats, crowdedly.entropy_nats, atol=1e-3)
        assert calmly.fork.tolist() == crowdedly.fork.tolist()
        assert calmly.stopped.tolist() == crowdedly.stopped.tolist()
        assert b.lane.recorded_tokens() == 40


def chunked(file: telemetry.LaneFile) -> None:
    """A prompt that is prefilled in parts leaves one record a token, the right one at the first. (No seed: on a CPU
    that would kill the engine; so greedy at every token.)"""
    pool, chunk = telemetry.LanePool(file), 64
    llm = engine(models.fetch(), file, enable_chunked_prefill=True, max_num_batched_tokens=chunk, max_num_seqs=4)
    tokenizer = llm.get_tokenizer()
    parts = [2, 3]  # neither ends where a part does
    prompts = [tokenizer.decode((tokenizer.encode(PROMPTS[i]) * chunk)[: n * chunk + 9]) for i, n in enumerate(parts)]
    assert all(len(tokenizer.encode(prompt)) > n * chunk for n, prompt in zip(parts, prompts, strict=True))
    zero = {"fork_temperature": 0, "other_temperature": 0, "threshold_nats": 0.6}
    asked = [Asked(pool, zero, temperature=1.0, max_tokens=4, ignore_eos=True, **EVERY_LOGPROB) for _ in prompts]
    for a, output in zip(asked, run(llm, prompts, [a.params for a in asked]), strict=True):
        assert a.lane.recorded_tokens() == len(output.token_ids) == 4
        records = a.lane.read(0, 4)
        np.testing.assert_allclose(records.entropy_nats, entropies_from_logprobs(output), atol=1e-4)
        assert records.fork.tolist() == [h > 0.6 for h in records.entropy_nats]


def speculative(file: telemetry.LaneFile) -> None:
    """V1 under speculative decoding, the processor found by its entry point only: vLLM drops it in silence, so a
    steered request is refused."""
    llm = engine(models.fetch(), file, speculative_config=DRAFT, logits_processors=None)
    with pytest.raises(VLLMValidationError, match="drops logits processors under speculative decoding"):
        llm.generate(PROMPTS[:1], SamplingParams(extra_args={"steering": {}}), use_tqdm=False)
    assert llm.generate(PROMPTS[:1], SamplingParams(max_tokens=2), use_tqdm=False)


def speculative_named(file: telemetry.LaneFile) -> None:
    """V1 under speculative decoding, the processor named: vLLM does not start."""
    with pytest.raises(Exception, match=r"(?i)logits processors are not supported when speculative"):
        engine(models.fetch(), file, speculative_config=DRAFT)


if __name__ == "__main__":
    name = sys.argv[1]
    with telemetry.created(CAPACITY, max_lanes=65) as lane_file:
        {f.__name__: f for f in (preempted, chunked, speculative, speculative_named)}[name](lane_file)
    print(f"{name}: held", flush=True)
