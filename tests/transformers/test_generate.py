"""`steerdec.hf.generate`: one right record per returned token, in every way of generating that is not refused.

The truth is `tests.support.expected_records`: a forward pass in float64 over each returned sequence, without padding,
and steerdec's reference on its logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    GenerationConfig,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation import utils as transformers_loops

from steerdec.hf import SteeredGeneration, generate
from steerdec.policies import registry
from tests.support.expected_records import Findings, Returned, Truth
from tests.support.memory_episodes import assert_told
from tests.support.tiny_models import tiny_model

STORY = "Once upon a time there was a"
REPEATED = "A cat sat on a mat. A dog sat on a"
TOKENS = 12
SPLIT = {"fork_temperature": 1.2, "other_temperature": 0.6, "threshold_nats": 1.0}


@pytest.fixture(scope="module")
def model(weights: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> Any:
    return AutoTokenizer.from_pretrained(weights, padding_side="left")


@pytest.fixture(scope="module")
def truth(weights: Path) -> Truth:
    return Truth(weights)


@pytest.fixture(scope="module", autouse=True)
def drawn() -> Iterator[Findings]:
    """What all tests found: the tokens must be drawn from the steered distributions."""
    found = Findings()
    yield found
    assert abs(found.steered.deviations) < 5


def call(model: Any, steering: dict[str, Any] = SPLIT, seed: int | None = None, **options: Any) -> SteeredGeneration:
    torch.manual_seed(0)
    defaults = {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": TOKENS}
    return generate(model, steering=steering, seed=seed, **(defaults | options))


def check(
    truth: Truth,
    steered: SteeredGeneration,
    prompts: list[list[int]],
    steering: dict[str, Any] = SPLIT,
    *,
    temperature: float = 0.8,
    seed: int | None = None,
    drawn: Findings | None = None,
) -> Findings:
    """Compare every record with the truth, and the ids with the output; `prompts` has one per sequence."""
    found = Findings() if drawn is None else drawn
    rows = rows_of(steered)
    assert len(steered.sequences) == len(rows) == len(prompts)
    for r, (one, prompt) in enumerate(zip(steered.sequences, prompts, strict=True)):
        assert one.steering is not None
        start = rows.shape[1] - max(len(s.token_ids) for s in steered.sequences)
        assert rows[r, start : start + len(one.token_ids)].tolist() == one.token_ids
        told = registry.parse(steering).model_dump(exclude_none=True) | {"telemetry": "tokens"}
        returned = Returned(f"row {r}", prompt, temperature, None if seed is None else seed + r, told)
        returned.tokens, returned.records, returned.finished = one.token_ids, one.steering.lists(), True
        returned.summary = one.steering.summary()
        before = found.records
        truth.compare(returned, found)
        assert found.records - before == len(one.token_ids)
    assert not found.wrong
    return found


def rows_of(steered: SteeredGeneration) -> Tensor:
    return steered.output if isinstance(steered.output, Tensor) else steered.output.sequences


def unpadded(inputs: Any) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)]


@pytest.mark.parametrize(
    "steering",
    [
        SPLIT,
        {"fork_temperature": 0.0, "threshold_nats": 2.0, "probe_temperature": "applied"},
        {"select": "random", "fork_rate": 0.4, "fork_temperature": 1.3},
        {"policy": "entropy_target", "delta_nats": 0.2, "threshold_nats": 0.6},
        {"policy": "uniform_top_k", "threshold_nats": 0.6},
        {"select": "all", "scope": "answer", "thinking_start_id": 0, "thinking_end_id": 28, "fork_temperature": 1.3},
    ],
    ids=lambda s: s.get("scope", s.get("policy", s.get("select", f"fork at {s.get('fork_temperature')}"))),
)
def test_one_sequence(model: Any, tokenizer: Any, truth: Truth, drawn: Findings, steering: dict[str, Any]) -> None:
    inputs = tokenizer(STORY, return_tensors="pt")
    steered = call(model, steering, seed=3, **inputs)
    assert len(steered.sequences[0].token_ids) == TOKENS
    check(truth, steered, unpadded(inputs), steering, seed=3, drawn=drawn)


def test_padded_prompts_whose_rows_end_early(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    """The padding is a token that ends a row, as transformers chooses it for a model without one."""
    inputs = tokenizer(["The capital of France is", STORY, "No"], return_tensors="pt", padding=True)
    ends = [ids[0] for ids in tokenizer([",", "."]).input_ids]
    model_without = copy.copy(model)
    model_without.generation_config = GenerationConfig(eos_token_id=ends)
    steered = call(model_without, **inputs)
    check(truth, steered, unpadded(inputs), drawn=drawn)
    lengths = [len(one.token_ids) for one in steered.sequences]
    assert len(set(lengths)) == 3
    for one, row in zip(steered.sequences, rows_of(steered), strict=True):
        assert all(token not in ends for token in one.token_ids[:-1])
        if len(one.token_ids) < max(lengths):
            assert one.token_ids[-1] in ends
            assert set(row[len(one.token_ids) - max(lengths) :].tolist()) == {ends[0]}


class Stop(StoppingCriteria):
    """Stops rows after a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids[:, -1] == self.token


def test_rows_that_a_stop_string_or_a_criterion_ends(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    """Padding is the end-of-sequence token, so the ids alone do not say where a row ended."""
    inputs = tokenizer(["The capital of France is", STORY, "No"], return_tensors="pt", padding=True)
    (comma,), eos = tokenizer(",").input_ids, model.generation_config.eos_token_id
    steered = call(
        *(model, SPLIT),
        **inputs,
        **{"stop_strings": ["."], "tokenizer": tokenizer, "stopping_criteria": [Stop(comma)], "pad_token_id": eos},
    )
    check(truth, steered, unpadded(inputs), drawn=drawn)
    assert [tokenizer.decode(one.token_ids)[-1] for one in steered.sequences[:2]] == [".", ","]
    assert all(eos not in one.token_ids for one in steered.sequences)
    assert rows_of(steered)[0, -1] == eos


def test_without_an_end_token_rows_that_have_ended_go_on(model: Any, tokenizer: Any, truth: Truth) -> None:
    """As transformers does it: the tokens are returned, so they have records."""
    inputs = tokenizer(["The capital of France is", STORY], return_tensors="pt", padding=True)
    (comma,) = tokenizer(",").input_ids
    endless = copy.copy(model)
    endless.generation_config = GenerationConfig(pad_token_id=2)
    steered = call(endless, **inputs, stopping_criteria=[Stop(comma)])
    check(truth, steered, unpadded(inputs))
    assert {len(one.token_ids) for one in steered.sequences} == {rows_of(steered).shape[1] - inputs.input_ids.shape[1]}


def test_several_sequences_of_each_prompt(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    steering = {"select": "random", "fork_rate": 0.4, "fork_temperature": 1.3}
    inputs = tokenizer([STORY, "No"], return_tensors="pt", padding=True)
    steered = call(model, steering, seed=5, **inputs, num_return_sequences=2, max_new_tokens=6)
    check(truth, steered, [p for p in unpadded(inputs) for _ in range(2)], steering, seed=5, drawn=drawn)


@contextmanager
def lengths_of_steps(model: Any) -> Iterator[list[int]]:
    """How many tokens each forward pass of the model was given."""
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


def test_prompt_lookup(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    inputs = tokenizer(REPEATED, return_tensors="pt")
    with lengths_of_steps(model) as lengths:
        steered = call(model, **inputs, prompt_lookup_num_tokens=5, max_new_tokens=16)
    check(truth, steered, unpadded(inputs), drawn=drawn)
    evaluated = sum(lengths) - inputs.input_ids.shape[1] + 1
    assert len(lengths) < 16 < evaluated, "no draft was accepted, or none was rejected"


@pytest.mark.parametrize("drafts", [{}, {"prompt_lookup_num_tokens": 5}])
def test_a_memory_follows_the_tokens_that_are_kept(model: Any, tokenizer: Any, drafts: dict[str, Any]) -> None:
    inputs = tokenizer(REPEATED, return_tensors="pt")
    steering = {"select": "quantile", "threshold_nats": 0.5, "hysteresis": 0.2, "fork_temperature": 1.6}
    steering |= {"guard_mean_entropy_nats": 1.5, "guard_window_tokens": 6}
    torch.manual_seed(1)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 24} | drafts
    (one,) = generate(model, **inputs, steering=steering, **options).sequences
    assert one.steering is not None
    assert_told(one.steering.summary() | one.steering.lists(), steering)


def test_prompt_lookup_with_greedy_forks(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    """Nothing is drafted: transformers tests drafts on equal logits, which are a fork."""
    inputs, steering = tokenizer(REPEATED, return_tensors="pt"), SPLIT | {"fork_temperature": 0.0}
    with lengths_of_steps(model) as lengths:
        steered = call(model, steering, **inputs, prompt_lookup_num_tokens=5, max_new_tokens=6)
    check(truth, steered, unpadded(inputs), steering, drawn=drawn)
    assert lengths[1:] == [1] * 5


def test_assistant_model(
    model: Any, tokenizer: Any, truth: Truth, drawn: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assistant is the model itself: transformers draws its drafts at the temperature squared, so some fail."""
    rounds: list[tuple[int, int]] = []
    theirs = transformers_loops._speculative_sampling

    def noted(candidates: Tensor, logits: Tensor, length: int, *args: Any, **options: Any) -> Any:
        tokens, matches = theirs(candidates, logits, length, *args, **options)
        rounds.append((length, int(matches)))
        return tokens, matches

    monkeypatch.setattr(transformers_loops, "_speculative_sampling", noted)
    inputs = tokenizer(STORY, return_tensors="pt")
    steered = call(model, SPLIT | {"fork_temperature": 1.6}, **inputs, assistant_model=model, max_new_tokens=20)
    check(truth, steered, unpadded(inputs), SPLIT | {"fork_temperature": 1.6}, drawn=drawn)
    assert sum(matches for _, matches in rounds) > 0
    assert any(matches < length for length, matches in rounds)


@pytest.mark.parametrize("with_ids", [False, True], ids=["embeddings", "embeddings and ids"])
def test_embedded_prompt(model: Any, tokenizer: Any, truth: Truth, drawn: Findings, with_ids: bool) -> None:
    inputs = tokenizer([STORY, "No"], return_tensors="pt", padding=True)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(inputs.input_ids),
        "attention_mask": inputs.attention_mask,
    }
    steered = call(model, **embedded, **({"input_ids": inputs.input_ids} if with_ids else {}), max_new_tokens=6)
    check(truth, steered, unpadded(inputs), drawn=drawn)
    assert rows_of(steered).shape[1] == 6 + with_ids * inputs.input_ids.shape[1]


class EncodedTruth(Truth):
    """That of a model with an encoder, whose input is known by the start of the decoder's."""

    def __init__(self, model: Any, encoded: dict[tuple[int, ...], Tensor]) -> None:
        self._model, self._encoded = copy.deepcopy(model).double(), encoded

    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        encoder, decoder = self._encoded[tuple(prompt)], torch.tensor([prompt + tokens])
        with torch.no_grad():
            out: Tensor = self._model(input_ids=encoder[None], decoder_input_ids=decoder).logits
        return out[0, len(prompt) - 1 : -1]


def tiny_encoder_decoder() -> Any:
    """A random T5: there is no small real one here, and what is tested does not depend on the weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=2.0, dropout_rate=0.0)).eval()


@pytest.mark.parametrize("start", [1, 3], ids=["decoder start token", "decoder prompt"])
def test_encoder_decoder(start: int, drawn: Findings) -> None:
    model = tiny_encoder_decoder()
    prompts = torch.tensor([[0, 7, 9][:start], [0, 8, 9][:start]])
    encoded = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0]])
    rows = range(2) if start > 1 else range(1)  # without a decoder prompt, the rows cannot be told apart
    given = {"decoder_input_ids": prompts} if start > 1 else {}
    truth = EncodedTruth(model, {tuple(prompts[r].tolist()): encoded[r][encoded[r] != 0] for r in rows})
    steered = call(model, input_ids=encoded[: len(rows)], attention_mask=(encoded[: len(rows)] != 0).long(), **given)
    found = check(truth, steered, [prompts[r].tolist() for r in rows])
    assert 0 < sum(one.steering.fork.sum() for one in steered.sequences if one.steering) < found.tokens


def test_temperature_is_the_one_that_generate_uses(
    model: Any, tokenizer: Any, truth: Truth, drawn: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tokenizer(STORY, return_tensors="pt")
    steering = {"fork_temperature": 1.2, "threshold_nats": 1.0}  # other tokens at the request's own
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=0, max_new_tokens=6)
    given = generate(model, **inputs, steering=steering, generation_config=config)
    check(truth, given, unpadded(inputs), steering, temperature=0.5, drawn=drawn)
    monkeypatch.setattr(model, "generation_config", copy.deepcopy(model.generation_config))
    model.generation_config.update(temperature=0.7, do_sample=True, top_k=0)
    defaults = generate(model, inputs.input_ids, steering=steering, max_new_tokens=6)
    check(truth, defaults, unpadded(inputs), steering, temperature=0.7, drawn=drawn)
    none = call(model, steering, **inputs, temperature=None, max_new_tokens=6)
    check(truth, none, unpadded(inputs), steering, temperature=1.0, drawn=drawn)


def test_filters_come_after_steering(model: Any, tokenizer: Any, truth: Truth) -> None:
    inputs = tokenizer(STORY, return_tensors="pt")
    filters = {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3}
    steered = call(model, **inputs, **filters, renormalize_logits=True)
    check(truth, steered, unpadded(inputs))


class PenalizedTruth(Truth):
    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        penalty, plain = RepetitionPenaltyLogitsProcessor(1.5), super().logits(prompt, tokens)
        rows = [penalty(torch.tensor([prompt + tokens[:i]]), plain[i : i + 1].clone()) for i in range(len(tokens))]
        return torch.cat(rows)


def test_penalties_come_before_steering(model: Any, tokenizer: Any, truth: Truth, drawn: Findings) -> None:
    penalized = copy.copy(truth)
    penalized.__class__ = PenalizedTruth
    inputs = tokenizer(REPEATED, return_tensors="pt")
    check(penalized, call(model, **inputs, repetition_penalty=1.5), unpadded(inputs), drawn=drawn)
    own = call(model, **inputs, logits_processor=[RepetitionPenaltyLogitsProcessor(1.5)])
    check(penalized, own, unpadded(inputs))


def test_steering_at_the_base_temperature_changes_nothing(model: Any, tokenizer: Any) -> None:
    inputs = tokenizer([STORY, "No"], return_tensors="pt", padding=True)
    base = {"fork_temperature": 0.8, "other_temperature": 0.8}
    steered = call(model, base, **inputs, return_dict_in_generate=True, output_scores=True)
    torch.manual_seed(0)
    plain = model.generate(**inputs, do_sample=True, temperature=0.8, top_k=0, max_new_tokens=TOKENS)
    assert rows_of(steered).equal(plain)
    assert len(steered.output.scores) == plain.shape[1] - inputs.input_ids.shape[1]
    assert [len(one.token_ids) for one in steered.sequences] == [len(one.steering.fork) for one in steered.sequences]  # type: ignore[union-attr]


def test_telemetry_none_has_no_records(model: Any, tokenizer: Any) -> None:
    steered = call(model, SPLIT | {"telemetry": "none"}, **tokenizer(STORY, return_tensors="pt"), max_new_tokens=2)
    assert steered.sequences[0].steering is None
    assert len(steered.sequences[0].token_ids) == 2


How = Callable[[Any, Any], tuple[Any, dict[str, Any]]]


def compiled_in_place(model: Any, backend: Any) -> tuple[Any, dict[str, Any]]:
    model.compile(backend=backend)
    return model, {}


def compiled_wrapper(model: Any, backend: Any) -> tuple[Any, dict[str, Any]]:
    return torch.compile(model, backend=backend), {}


def compiled_forward(model: Any, backend: Any) -> tuple[Any, dict[str, Any]]:
    model.forward = torch.compile(model.forward, backend=backend)
    return model, {}


def compiled_by_generate(model: Any, backend: Any) -> tuple[Any, dict[str, Any]]:
    config = CompileConfig(backend=backend, mode=None, fullgraph=True)
    config._compile_all_devices = True  # else transformers compiles on GPUs only
    return model, {"compile_config": config}


def same_when_compiled(how: How, backend: Any) -> None:
    """On a tiny model, because compiling is slow, and with the static cache, which needs fewer compilations."""
    model, ids = tiny_model(), torch.tensor([[5, 6, 7], [8, 9, 10]])
    prompt = {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]), "pad_token_id": 0}
    steering = {"fork_temperature": 1.2, "other_temperature": 0.6, "threshold_nats": 3.8}
    plain = call(model, steering, **prompt, max_new_tokens=6)
    torch.compiler.reset()
    compiled, options = how(copy.deepcopy(model), backend)
    steered = call(compiled, steering, **prompt, **options, max_new_tokens=6, cache_implementation="static")
    for one, other in zip(plain.sequences, steered.sequences, strict=True):
        assert one.token_ids == other.token_ids
        assert one.steering is not None
        assert other.steering is not None
        np.testing.assert_array_equal(one.steering.fork, other.steering.fork)
        np.testing.assert_allclose(one.steering.entropy_nats, other.steering.entropy_nats, atol=1e-4)
        assert 0 < one.steering.fork.sum() < 6


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(compiled_in_place, marks=pytest.mark.thorough),
        pytest.param(compiled_forward, marks=pytest.mark.thorough),
        compiled_wrapper,
        compiled_by_generate,
    ],
)
def test_compiled_models_give_the_same(how: How) -> None:
    graphs = []

    def traced(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward  # as it is, without a compiler

    same_when_compiled(how, traced)
    # The method of a compiled wrapper is that of the model inside, so transformers does not compile it.
    assert bool(graphs) == (how is not compiled_wrapper)


@pytest.mark.thorough
@pytest.mark.parametrize("how", [compiled_in_place, compiled_forward, compiled_by_generate])
def test_models_compiled_by_inductor_give_the_same(how: How) -> None:
    same_when_compiled(how, "inductor")
