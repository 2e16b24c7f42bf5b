"""Tokens drawn by vLLM's whole V2 engine against the distribution that the reference says, by chi-square.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter. Each draw is a request with a seed of its
own, for the first token after one prompt.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vllm import LLM
from vllm.sampling_params import StructuredOutputsParams

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_draws import AT_ONCE, DRAWS, FIRST_SEED, OFF, Case, assert_drawn, logits_after, telling

HOT = {"fork_temperature": 1.6, "other_temperature": 0.5, "threshold_nats": 0.3}
REGEX = "[a-zA-Z0-9]{2}"
CASES = {
    "plain": Case(None, temperature=1.4),
    "split": Case(HOT),
    "entropy target": Case({"policy": "entropy_target", "delta_nats": 0.9, "select": "all"}),
    "top-p": Case(HOT, top_p=0.9),
    "grammar": Case(HOT | {"fork_temperature": 2.0}),
}
PROMPTS = [[a, b] for a in (64, 70, 75, 80) for b in range(60, 92)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=3) as file:
        folder = tmp_path_factory.mktemp("draws") / "model"
        yield v2_engine.started(folder, file, max_num_seqs=AT_ONCE, max_model_len=64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name == "grammar")) for name in CASES]
)
def test_tokens_follow_the_references_distribution(llm: LLM, name: str) -> None:
    case, sampling = CASES[name], dict[str, Any]()
    if name == "grammar":
        tokenizer = llm.get_tokenizer()
        letters = [t for t in range(len(tokenizer)) if (s := tokenizer.decode([t])).isascii() and s.isalnum()]
        case = Case(case.steering, case.temperature, allowed=letters)
        sampling["structured_outputs"] = StructuredOutputsParams(regex=REGEX)
    rows = [rows[0] for _, rows in logits_after(llm, PROMPTS)]
    best = max(range(len(PROMPTS)), key=lambda i: telling(case, rows[i]))
    params = [case.params(max_tokens=1, seed=FIRST_SEED + i, **sampling) for i in range(DRAWS)]
    answers = llm.generate([{"prompt_token_ids": PROMPTS[best]}] * DRAWS, params, use_tqdm=False)
    tokens = np.array([answer.outputs[0].token_ids[0] for answer in answers])
    assert_drawn(name, tokens, case.expected(rows[best]), case.expected(rows[best], off=OFF))
