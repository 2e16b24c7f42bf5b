"""The logits processor for transformers, against vLLM on the same prefixes and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerdec.common.errors import InvalidInputError
from steerdec.common.json import nan_if_null
from steerdec.hf import EntropySteering
from steerdec.steering.params import SteeringError
from tests.support.serving import PATIENCE_S


@pytest.fixture(scope="module")
def model(weights: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(weights: Path) -> Any:
    return AutoTokenizer.from_pretrained(weights)("Once upon a time there was a", return_tensors="pt")


def generate(model: Any, inputs: Any, processor: EntropySteering | None, **sampling: Any) -> list[int]:
    torch.manual_seed(0)
    steered = {} if processor is None else {"logits_processor": [processor]}
    out = model.generate(**inputs, max_new_tokens=12, top_k=0, pad_token_id=2, **steered, **sampling)
    return out[0, inputs.input_ids.shape[1] :].tolist()


def processor(
    inputs: Any, steering: dict[str, Any], temperature: float = 0.8, seed: int | None = None
) -> EntropySteering:
    return EntropySteering(steering, temperature=temperature, prompt_tokens=inputs.input_ids.shape[1], seed=seed)


def test_base_temperatures_change_nothing(model: Any, inputs: Any) -> None:
    plain = generate(model, inputs, None, do_sample=True, temperature=0.8)
    same = processor(inputs, {"fork_temperature": 0.8, "other_temperature": 0.8})
    assert generate(model, inputs, same, do_sample=True, temperature=0.8) == plain
    assert len(same.outcomes) == 12


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


@pytest.mark.engine
@pytest.mark.parametrize(
    "steering",
    [
        {"fork_temperature": 1.3, "other_temperature": 0.5, "threshold_nats": 0.6},
        {"select": "random", "fork_rate": 0.3, "fork_temperature": 1.3},
        {"select": "first", "first_tokens": 5, "fork_temperature": 1.3},
        {"policy": "entropy_target", "delta_nats": 0.2, "threshold_nats": 0.6},
        {"policy": "dynatemp"},
        {"policy": "edt"},
        {"policy": "p_less", "threshold_nats": 0.6},
        {"policy": "uniform_top_k", "threshold_nats": 0.6},
        {"select": "quantile", "threshold_nats": 0.3, "hysteresis": 0.2, "fork_temperature": 2.0}
        | {"guard_mean_entropy_nats": 1.6, "guard_window_tokens": 8},
    ],
    ids=lambda s: s.get("policy", s.get("select", "split")),
)
def test_on_the_same_prefixes_it_decides_as_vllm(model: Any, server_url: str, steering: dict[str, Any]) -> None:
    """Token for token over an answer of vLLM's: the entropy, the choice, the temperature."""
    body = {"model": "SmolLM2-135M-Instruct", "prompt": "Once upon a time there was a", "max_tokens": 32, "seed": 5}
    body |= {"temperature": 0.8, "return_token_ids": True, "steering": steering | {"telemetry": "tokens"}}
    choice = httpx.post(f"{server_url}/v1/completions", json=body, timeout=PATIENCE_S).json()["choices"][0]
    prompt, new = choice["prompt_token_ids"], choice["token_ids"]
    twin = EntropySteering(steering, temperature=0.8, prompt_tokens=len(prompt), seed=5)
    ids = torch.tensor([[*prompt, *new]])
    with torch.no_grad():
        logits = model(ids).logits
    for t in range(len(new)):
        end = len(prompt) + t
        twin(ids[:, :end], logits[:, end - 1])

    told = choice["steering"]
    h = np.array([float(o.entropy_nats[0]) for o in twin.outcomes])
    np.testing.assert_allclose(h, told["entropy_nats"], atol=1e-4)
    threshold = steering.get("threshold_nats", 0.672)
    if "thresholds_nats" in told:
        threshold = np.array([float(o.threshold_nats[0]) for o in twin.outcomes])
        np.testing.assert_allclose(threshold, told["thresholds_nats"], rtol=1e-4)
        stopped = [bool(o.stopped[0]) for o in twin.outcomes]
        assert told["guard_token"] == (stopped.index(True) if any(stopped) else None)
    clear = np.abs(h - threshold) > 1e-4  # of the threshold, where one decides
    selected = np.array([bool(o.selected[0]) for o in twin.outcomes])
    assert (selected == told["fork"])[clear].all()
    assert selected.sum() > 0
    temperature = np.array([float(o.temperature[0]) for o in twin.outcomes])
    tolerance = 1e-3 if "policy" in steering else 1e-6  # of a function of H; split's are the request's own numbers
    temperature[np.isinf(temperature)] = np.nan  # JSON has no infinity: null
    np.testing.assert_allclose(temperature[clear], nan_if_null(told["temperature"])[clear], rtol=tolerance)


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


def test_rows_that_have_ended_go_on_having_outcomes(model: Any, inputs: Any) -> None:
    """So `outcomes` is as long as the longest row; `steerdec.hf.generate` knows where each row ends."""
    asked = EntropySteering({}, temperature=0.8)
    torch.manual_seed(0)
    sampled = {"do_sample": True, "temperature": 0.8, "num_return_sequences": 3, "max_new_tokens": 6}
    out = model.generate(**inputs, **sampled, eos_token_id=list(range(0, 40000, 2)), logits_processor=[asked])
    assert len(asked.outcomes) == out.shape[1] - inputs.input_ids.shape[1]
    assert {len(o.selected) for o in asked.outcomes} == {3}


def test_rows_have_a_memory_each_which_a_beam_search_would_mix_up() -> None:
    asked = EntropySteering(
        {"guard_mean_entropy_nats": 1.0, "guard_window_tokens": 2, "fork_temperature": 2.0, "threshold_nats": 0.1},
        temperature=1.0,
        prompt_tokens=1,
    )
    flat, sure = torch.zeros(11), torch.tensor([30.0] + [0.0] * 10)
    asked(torch.tensor([[1], [1]]), torch.stack((flat, sure)))
    asked(torch.tensor([[1, 5], [1, 6]]), torch.stack((sure, flat)))
    asked(torch.tensor([[1, 5, 7], [1, 6, 7]]), torch.stack((flat, sure)))
    assert [o.stopped.tolist() for o in asked.outcomes] == [[False, False], [True, True], [True, True]]
    with pytest.raises(InvalidInputError, match="without beams"):
        asked(torch.tensor([[1, 6, 7, 8], [1, 5, 7, 8]]), torch.stack((flat, sure)))


def test_what_cannot_be_done_is_refused_before_the_first_token(inputs: Any) -> None:
    with pytest.raises(SteeringError, match="temperature is 0"):
        processor(inputs, {}, temperature=0.0)
    with pytest.raises(SteeringError, match="seed"):
        processor(inputs, {"select": "random", "fork_rate": 0.2})
    with pytest.raises(SteeringError, match="thinking_start_id"):
        processor(inputs, {"scope": "answer"})
