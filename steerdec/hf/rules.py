"""Decide which calls of `generate` cannot be steered exactly, and why; one function per rule.

Every rule raises one plain line before any token is sampled. Rules about the steering itself are in
`steerdec.steering.admission`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode, StopStringCriteria

from steerdec.common.errors import InvalidInputError
from steerdec.hf.processor import EntropySteering
from steerdec.steering.params import SteeringError

# What the loop of a text model consists of. Models of other things replace some of it.
_LOOP: Final = (
    *("generate", "_sample", "_assisted_decoding"),
    *("_prepare_generation_config", "_get_logits_processor", "_get_stopping_criteria"),
)
_OTHER_DRAFTS: Final = ("assistant_early_exit", "use_mtp", "speculation_type", "assistant_ensemble_weight")


def settings_of(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """Return the settings that `model.generate(**options)` uses: options, else the given config, else the model's."""
    given = options.get("generation_config")
    settings = GenerationConfig() if given is None else copy.deepcopy(given)
    settings.update(**model.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    settings.update(**{name: value for name, value in options.items() if name != "generation_config"})
    return settings


def admit(model: Any, settings: GenerationConfig, options: Mapping[str, Any]) -> None:
    """Refuse a call of `generate` that cannot be steered exactly.

    Raises:
        SteeringError: steering does not go with an option.
        InvalidInputError: an argument cannot be used.
    """
    refuse_own_loop(model)
    refuse_custom_generate(options.get("custom_generate"))
    refuse_continuous_batching(options.get("cache_implementation"))
    refuse_beams(settings.num_beams)
    refuse_greedy(settings.do_sample)
    refuse_other_modes(settings.get_generation_mode(options.get("assistant_model")))
    refuse_other_drafts(settings, options)
    refuse_watermark(settings.watermarking_config)
    for processor in options.get("logits_processor") or ():
        refuse_early_filter(processor)
    for criterion in options.get("stopping_criteria") or ():
        refuse_own_criterion(criterion)


def drafts(settings: GenerationConfig, options: Mapping[str, Any]) -> bool:
    """Return whether tokens are drafted: several positions per step, some of them rejected."""
    mode = settings.get_generation_mode(options.get("assistant_model"))
    return bool(mode == GenerationMode.ASSISTED_GENERATION)


def refuse_own_loop(model: Any) -> None:
    """Refuse a model that does not generate as text models do."""
    owner = type(getattr(model.generate, "__self__", model))  # a compiled model hands out the method of the one inside
    for name in _LOOP:
        if getattr(owner, name, None) is not getattr(GenerationMixin, name):
            raise InvalidInputError(f"model: {owner.__name__} has its own {name}, which cannot be steered")


def refuse_custom_generate(custom_generate: object) -> None:
    """Refuse another decoding loop."""
    if custom_generate is not None:
        raise SteeringError("", "does not go with custom_generate, whose loop may do anything with the logits")


def refuse_continuous_batching(cache_implementation: object) -> None:
    """Refuse `cache_implementation="paged"`, under which transformers drops the logits processors it is given."""
    if cache_implementation == "paged":
        raise SteeringError("", 'does not go with cache_implementation "paged", which drops logits processors')


def refuse_beams(num_beams: int | None) -> None:
    """Refuse beams: their tokens are chosen, or drawn, from all beams at once and by the scores of whole sequences."""
    if num_beams is not None and num_beams > 1:
        raise SteeringError("", f"does not go with num_beams {num_beams}: no token has a temperature of its own; use 1")


def refuse_greedy(do_sample: bool | None) -> None:
    """Refuse greedy decoding, which has no temperature; also contrastive search."""
    if do_sample is not True:
        raise SteeringError("", f"needs sampling, but do_sample is {do_sample}; give do_sample=True")


def refuse_other_modes(mode: GenerationMode) -> None:
    """Refuse decoding that is neither sampling nor assisted generation, such as DoLa."""
    if mode not in (GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION):
        raise SteeringError("", f"does not go with {mode.value.replace('_', ' ')}")


def refuse_other_drafts(settings: GenerationConfig, options: Mapping[str, Any]) -> None:
    """Refuse drafts that do not keep the model's distribution, or of which we do not know that they do."""
    names = [name for name in _OTHER_DRAFTS if getattr(settings, name, None)]
    if options.get("assistant_tokenizer") is not None:
        names.append("assistant_tokenizer")
    if names:
        raise SteeringError(
            "",
            f"does not go with {names[0]}; use prompt_lookup_num_tokens or an assistant_model of the same tokenizer",
        )


def refuse_watermark(watermarking_config: object) -> None:
    """Refuse a watermark, which changes the logits after steering."""
    if watermarking_config is not None:
        raise SteeringError("", "does not go with watermarking_config, which changes the distribution after steering")


def refuse_early_filter(processor: object) -> None:
    """Refuse a temperature or a filter before steering: H is that of the model's own distribution."""
    name = type(processor).__name__
    if isinstance(processor, EntropySteering) or name.endswith("LogitsWarper"):  # transformers' name for all of them
        raise SteeringError(
            "", f"does not go with {name} in logits_processor; give its option (temperature, top_k, ...) instead"
        )


def refuse_own_criterion(criterion: object) -> None:
    """Refuse a criterion of transformers' own as an object: it would replace the one made from the options."""
    name = type(criterion).__name__
    if type(criterion).__module__ == StopStringCriteria.__module__:
        raise InvalidInputError(
            f"stopping_criteria: {name} must be given as its option (eos_token_id, stop_strings, ...)"
        )
