"""What `steerdec.hf` refuses: in one plain line that docs/transformers.md has, before any token is sampled.

On a tiny random model, because nothing here depends on its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    WatermarkingConfig,
)

from steerdec.hf import EntropySteering, generate
from tests.support.tiny_models import tiny_model

DOCS = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text("utf-8")
IDS = torch.tensor([[5, 6, 7]])
SAMPLED = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 4, "pad_token_id": 0}
THINKING = {"scope": "thinking", "thinking_start_id": 5, "thinking_end_id": 6}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def passes(model: Any) -> Iterator[list[int]]:
    """One entry per forward pass of the model."""
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()


def refused(model: Any, steering: dict[str, Any] | None = None, **options: Any) -> str:
    """The message, which must be one line."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        generate(model, **({"input_ids": IDS} | SAMPLED | options), steering=steering or {"fork_temperature": 1.2})
    return str(caught.value)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "greedy": ({"do_sample": False}, "steering: needs sampling, but do_sample is False; give do_sample=True"),
    "greedy by default": ({"do_sample": None}, "steering: needs sampling, but do_sample is None; give do_sample=True"),
    "temperature 0": ({"temperature": 0.0}, "steering: needs a sampled request, but its temperature is 0 (greedy)"),
    "contrastive": (
        {"do_sample": False, "penalty_alpha": 0.6, "top_k": 4},
        "steering: needs sampling, but do_sample is False; give do_sample=True",
    ),
    "beams": (
        {"num_beams": 3, "do_sample": False},
        "steering: does not go with num_beams 3: no token has a temperature of its own; use 1",
    ),
    "sampled beams": (
        {"num_beams": 3},
        "steering: does not go with num_beams 3: no token has a temperature of its own; use 1",
    ),
    "DoLa": ({"dola_layers": "low"}, "steering: does not go with dola generation"),
    "constrained": ({"force_words_ids": [[7]]}, "steering: does not go with constrained beam search"),
    "continuous batching": (
        {"cache_implementation": "paged"},
        'steering: does not go with cache_implementation "paged", which drops logits processors',
    ),
    "another loop": (
        {"custom_generate": "transformers-community/dola"},
        "steering: does not go with custom_generate, whose loop may do anything with the logits",
    ),
    "early exit": (
        {"assistant_early_exit": 1},
        "steering: does not go with assistant_early_exit; use prompt_lookup_num_tokens or an assistant_model "
        "of the same tokenizer",
    ),
    "a mixture with the assistant": (
        {"prompt_lookup_num_tokens": 2, "assistant_ensemble_weight": 0.5},
        "steering: does not go with assistant_ensemble_weight; use prompt_lookup_num_tokens or an assistant_model "
        "of the same tokenizer",
    ),
    "another tokenizer": (
        {"assistant_tokenizer": "any"},
        "steering: does not go with assistant_tokenizer; use prompt_lookup_num_tokens or an assistant_model "
        "of the same tokenizer",
    ),
    "watermark": (
        {"watermarking_config": WatermarkingConfig()},
        "steering: does not go with watermarking_config, which changes the distribution after steering",
    ),
    "a temperature before steering": (
        {"logits_processor": [TemperatureLogitsWarper(0.5)]},
        "steering: does not go with TemperatureLogitsWarper in logits_processor; give its option (temperature, top_k, "
        "...) instead",
    ),
    "a filter before steering": (
        {"logits_processor": [TopKLogitsWarper(5)]},
        "steering: does not go with TopKLogitsWarper in logits_processor; give its option (temperature, top_k, ...) "
        "instead",
    ),
    "a criterion of transformers": (
        {"stopping_criteria": [EosTokenCriteria(3)]},
        "stopping_criteria: EosTokenCriteria must be given as its option (eos_token_id, stop_strings, ...)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_before_the_model_runs(model: Any, passes: list[int], case: str) -> None:
    options, message = CASES[case]
    assert refused(model, **options) == message
    assert not passes


@pytest.mark.parametrize("case", CASES)
def test_every_message_is_in_the_docs(case: str) -> None:
    assert CASES[case][1] in DOCS


def test_settings_of_the_model_and_of_a_config_are_seen(model: Any, passes: list[int]) -> None:
    beams = copy.copy(model)
    beams.generation_config = GenerationConfig(num_beams=2)
    assert "num_beams 2" in refused(beams)
    assert "num_beams 4" in refused(model, generation_config=GenerationConfig(num_beams=4))
    assert not passes


def test_another_steering_beside_this_one_is_refused(model: Any, passes: list[int]) -> None:
    other = EntropySteering({}, temperature=0.8)
    assert "EntropySteering in logits_processor" in refused(model, logits_processor=[other])
    assert not passes


def test_steering_is_checked_first(model: Any, passes: list[int]) -> None:
    assert refused(model, {"fork_temperatur": 1}).startswith("steering.fork_temperatur: ")
    assert "seed" in refused(model, {"select": "random", "fork_rate": 0.2})
    assert "thinking_start_id" in refused(model, {"scope": "answer"})
    assert not passes


def test_a_model_with_a_loop_of_its_own_is_refused(model: Any, passes: list[int]) -> None:
    class Speech(type(model)):  # type: ignore[misc]
        def _sample(self, *args: Any, **options: Any) -> Any:
            raise AssertionError

    speech = copy.copy(model)
    speech.__class__ = Speech
    assert refused(speech) == "model: Speech has its own _sample, which cannot be steered"
    assert not passes


def test_a_scope_needs_the_prompts_tokens(model: Any, passes: list[int]) -> None:
    """Known at the first step, before a token is sampled."""
    embedded = {"input_ids": None, "inputs_embeds": model.get_input_embeddings()(IDS)}
    message = refused(model, THINKING, **embedded)
    assert message == 'steering.scope: "thinking" needs the token ids of the prompt, not inputs_embeds'
    assert message in DOCS
    assert len(passes) == 1


@pytest.mark.parametrize("options", [{"num_return_sequences": 2}, {"input_ids": IDS.repeat(2, 1)}], ids=str)
def test_drafts_for_several_rows_are_refused_by_transformers(
    model: Any, passes: list[int], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"assisted generate|batch_size = 1"):
        generate(model, **({"input_ids": IDS} | SAMPLED | options), steering={}, prompt_lookup_num_tokens=2)
    assert not passes


# The processor by itself, which sees token ids and scores only -------------------------------------------------


NOT_NEXT = (
    "EntropySteering: this step does not continue the one before; it goes with one call of generate, without beams, "
    "and without drafts (assistant_model, prompt_lookup_num_tokens)"
)


def refused_alone(model: Any, processor: EntropySteering, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        model.generate(**({"input_ids": IDS} | SAMPLED | options), logits_processor=[processor])
    return str(caught.value)


def test_a_wrong_length_of_the_prompt_is_refused_at_the_first_step(model: Any, passes: list[int]) -> None:
    message = refused_alone(model, EntropySteering({}, temperature=0.8, prompt_tokens=2))
    assert message == "prompt_tokens: is 2, but generate begins with 3 tokens per row"
    assert len(passes) == 1


def test_a_second_call_is_refused_at_its_first_step(model: Any, passes: list[int]) -> None:
    used = EntropySteering({}, temperature=0.8)
    model.generate(IDS, **SAMPLED, logits_processor=[used])
    passes.clear()
    assert refused_alone(model, used) == NOT_NEXT
    assert len(passes) == 1
    assert NOT_NEXT in DOCS


def test_drafts_are_refused_before_one_is_accepted(model: Any) -> None:
    processor = EntropySteering({}, temperature=0.8)
    repeated = torch.tensor([[5, 6, 7, 8, 5, 6]])
    assert refused_alone(model, processor, input_ids=repeated, prompt_lookup_num_tokens=2) == NOT_NEXT
    processor = EntropySteering({}, temperature=0.8)
    assert refused_alone(model, processor, assistant_model=model, max_new_tokens=8) == NOT_NEXT


@pytest.mark.parametrize("do_sample", [False, True])
def test_beams_are_refused_when_they_are_reordered(model: Any, do_sample: bool) -> None:
    torch.manual_seed(0)
    processor = EntropySteering({"fork_temperature": 1.5}, temperature=0.8)
    assert refused_alone(model, processor, num_beams=4, do_sample=do_sample, max_new_tokens=16) == NOT_NEXT
