"""`SteeredLLM` on vLLM's whole V2 engine, in Triton's interpreter. Run by test_v2.py in a process of its own."""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams

from steerdec.offline import SteeredLLM
from tests.support.tiny_lm import tiny_lm
from tests.vllm_plugin.test_engine import EVERY_LOGPROB, entropies_from_logprobs

STEERING: dict[str, Any] = {"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": 1.0}
PROMPTS = [{"prompt_token_ids": [64 + i, 70, 71]} for i in range(6)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> SteeredLLM:
    folder = tiny_lm(tmp_path_factory.mktemp("v2") / "model", context_tokens=v2_engine.CAPACITY, head_dim=32)
    return SteeredLLM(
        str(folder),
        telemetry_lanes=4,  # fewer than sequences, and no context length: it is the model's
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=16,
        gpu_memory_utilization=0.1,
        max_logprobs=-1,
    )


def test_every_token_of_mixed_requests_has_its_record(llm: SteeredLLM) -> None:
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    assert llm.llm_engine.front_end.settings.lanes.capacity_tokens == v2_engine.CAPACITY
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 1.0} | EVERY_LOGPROB
    params = [SamplingParams(seed=i, n=1 + i % 3, max_tokens=4 + i, **options) for i in range(6)]
    steering = [STEERING, None, STEERING, STEERING, STEERING | {"telemetry": "none"}, STEERING]
    outputs = llm.generate(PROMPTS, params, steering=steering, use_tqdm=False)
    assert llm.llm_engine.front_end.pool.lent == 0
    for i, output in enumerate(outputs):
        assert len(output.outputs) == 1 + i % 3
        for one in output.outputs:
            if i in (1, 4):
                assert one.steering is None
                continue
            assert one.steering is not None
            np.testing.assert_allclose(one.steering.entropy_nats, entropies_from_logprobs(one), atol=1e-4)
            assert one.steering.temperature.tolist() == [1.5 if h > 1.0 else 0.5 for h in one.steering.entropy_nats]


def test_zero_temperature_everywhere_is_greedy(llm: SteeredLLM) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    sampled = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True, seed=1)
    zero = {"fork_temperature": 0, "other_temperature": 0}
    outputs = llm.generate(PROMPTS[:2] * 2, [greedy, greedy, sampled, sampled], steering=[None, None, zero, zero])
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    assert tokens[:2] == tokens[2:]
