"""Steering in transformers' generate(), against vLLM on the same prefixes and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerdec.hf import EntropySteering
from steerdec.params import SteeringError


@pytest.fixture(scope="module")
def model(weights: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(weights: Path) -> Any:
    return AutoTokenizer.from_pretrained(weights)("Once upon a time there was a", return_tensors="pt")


def generate(model: Any, inputs: Any, processor: EntropySteering | None, **sampling: Any) -> list[int]:
    torch.manual_seed(0)
    steered = {} if processor is None else {"logits_processor": [processor]}
    out = model.generate(**inputs, max_new_tokens=24, top_k=0, pad_token_id=2, **steered, **sampling)
    return out[0, inputs.input_ids.shape[1] :].tolist()


def processor(
    inputs: Any, steering: dict[str, Any], temperature: float = 0.8, seed: int | None = None
) -> EntropySteering:
    return EntropySteering(steering, temperature=temperature, prompt_tokens=inputs.input_ids.shape[1], seed=seed)


def test_base_temperatures_change_nothing(model: Any, inputs: Any) -> None:
    plain = generate(model, inputs, None, do_sample=True, temperature=0.8)
    same = processor(inputs, {"fork_temperature": 0.8, "other_temperature": 0.8})
    assert generate(model, inputs, same, do_sample=True, temperature=0.8) == plain
    assert len(same.outcomes) == 24


def test_zero_everywhere_is_greedy(model: Any, inputs: Any) -> None:
    zero = processor(inputs, {"fork_temperature": 0, "other_temperature": 0})
    assert generate(model, inputs, zero, do_sample=True, temperature=0.8) == generate(
        model, inputs, None, do_sample=False
    )


def test_one_temperature_everywhere_is_that_temperature(model: Any, inputs: Any) -> None:
    plain = generate(model, inputs, None, do_sample=True, temperature=0.5)
    asked = processor(inputs, {"fork_temperature": 0.5, "other_temperature": 0.5})
    assert generate(model, inputs, asked, do_sample=True, temperature=0.8) == plain


def test_only_the_first_tokens_are_steered(model: Any, inputs: Any) -> None:
    first = processor(inputs, {"select": "first", "first_tokens": 3, "fork_temperature": 0, "other_temperature": 0.8})
    new = generate(model, inputs, first, do_sample=True, temperature=0.8)
    assert [bool(o.selected[0]) for o in first.outcomes] == [i < 3 for i in range(len(first.outcomes))]
    assert new[:3] == generate(model, inputs, None, do_sample=False)[:3]


def test_entropies_and_forks_are_those_of_the_models_own_distribution(model: Any, inputs: Any) -> None:
    asked = processor(inputs, {"fork_temperature": 1.2, "threshold_nats": 1.0})
    new = generate(model, inputs, asked, do_sample=True, temperature=0.8)
    with torch.no_grad():
        logits = model(torch.cat([inputs.input_ids, torch.tensor([new])], 1)).logits[0].double()
    logp = logits[inputs.input_ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = -(logp.exp() * logp).sum(-1)
    measured = torch.cat([o.entropy_nats for o in asked.outcomes]).double()
    torch.testing.assert_close(measured, expected, atol=1e-3, rtol=1e-3)
    assert [bool(o.selected[0]) for o in asked.outcomes] == (measured > 1.0).tolist()


def test_scope_starts_after_the_delimiter(model: Any, inputs: Any) -> None:
    plain = generate(model, inputs, None, do_sample=False)
    start, end = plain[4], plain[9]
    steering = {"select": "all", "scope": "thinking", "thinking_start_id": start, "thinking_end_id": end}
    asked = processor(inputs, steering | {"fork_temperature": 0, "other_temperature": 0})
    generate(model, inputs, asked, do_sample=False)
    state, expected = False, []
    for token in plain:
        expected.append(state)
        state = True if token == start else False if token == end else state
    assert [bool(o.selected[0]) for o in asked.outcomes] == expected


def test_what_cannot_be_done_is_refused_before_the_first_token(inputs: Any) -> None:
    with pytest.raises(SteeringError, match="temperature is 0"):
        processor(inputs, {}, temperature=0.0)
    with pytest.raises(SteeringError, match="seed"):
        processor(inputs, {"select": "random", "fork_rate": 0.2})
    with pytest.raises(SteeringError, match="thinking_start_id"):
        processor(inputs, {"scope": "answer"})
