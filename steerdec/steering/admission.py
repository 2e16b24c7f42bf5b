"""Decide which steering is refused, and why: one function per rule.

A valid steering cannot be applied exactly to every request on every engine. The HTTP side calls these rules before a
response has begun, vLLM's `validate_params` for requests that arrive another way. Each rule raises SteeringError, in
one line.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from steerdec.steering.encoding import PACKED, REQUEST_T, SCOPES, SELECTORS, EncodedRequest
from steerdec.steering.params import Steering, SteeringError

NO_SEED: Final = -1  # to vLLM a seed of -1 means no seed
NO_PENALTIES: Final = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
EXACT_REJECTION: Final = ("standard", "block")  # rejection sampling that keeps the target's distribution
START_TOKEN: Final = "<think>"
END_TOKEN: Final = "</think>"


@dataclass(frozen=True)
class Sampling:
    """How a request samples, as far as steering depends on it; None if a value is missing or invalid."""

    temperature: float | None
    seed: int | None = None
    n: int = 1
    penalties: bool = False
    thinking_token_budget: bool = False
    beam_search: bool = False


@dataclass(frozen=True)
class Engine:
    """The properties of an engine that steering depends on; with the defaults everything is exact."""

    v1: bool = False  # the model runner
    speculative: bool = False
    rejection_method: str = "standard"
    sharded_sampling: bool = False
    hides_newest_tokens: bool = False  # from processors: V1 with async scheduling and no processor on the command line


def admit(steering: Steering, sampling: Sampling, engine: Engine) -> None:
    """Refuse steering that cannot be applied exactly as stated.

    Raises:
        SteeringError: the first broken rule.
    """
    admit_sampling(steering, sampling)
    refuse_late_penalties(sampling.penalties, engine)
    admit_engine(steering, engine)


def admit_sampling(steering: Steering, sampling: Sampling) -> None:
    """Apply the rules about the request alone. Raises SteeringError."""
    refuse_greedy(sampling.temperature)
    refuse_unseeded_placebo(steering, sampling.seed)
    refuse_missing_delimiters(steering)
    refuse_seed_of_none(sampling.seed, sampling.n)
    refuse_beam_search(sampling.beam_search)
    refuse_forced_tokens(sampling.thinking_token_budget)


def admit_engine(steering: Steering, engine: Engine) -> None:
    """Apply the rules about the engine alone. Raises SteeringError."""
    refuse_dropped_processors(engine)
    refuse_inexact_rejection(engine.rejection_method)
    refuse_sharded_sampling(engine)
    refuse_hidden_tokens(steering, engine)


# Rules about the request alone --------------------------------------------------------------------------------


def refuse_greedy(temperature: float | None) -> None:
    """Refuse temperature 0: vLLM takes the argmax of such rows, which scaling does not change."""
    if temperature is not None and not temperature > 0.0:
        raise SteeringError("", "needs a sampled request, but its temperature is 0 (greedy)")


def refuse_unseeded_placebo(steering: Steering, seed: int | None) -> None:
    """Refuse the placebo selector without a seed: it hashes the seed, so that it repeats."""
    if steering.select == "random" and seed is None:
        raise SteeringError("select", '"random" needs the request to have a seed, so that it repeats')


def refuse_missing_delimiters(steering: Steering) -> None:
    """Refuse a scope whose delimiters are unknown or the same token."""
    if steering.scope == "all":
        return
    start_id, end_id = steering.thinking_start_id, steering.thinking_end_id
    for name, token, value in (
        ("thinking_start_id", START_TOKEN, start_id),
        ("thinking_end_id", END_TOKEN, end_id),
    ):
        if value is None:
            raise SteeringError(name, f"must be given, since the model's tokenizer has no single token {token}")
    if start_id == end_id:
        raise SteeringError("thinking_end_id", f"{end_id} is also thinking_start_id; they must differ")


def refuse_seed_of_none(seed: int | None, n: int) -> None:
    """Refuse n sequences one of which would have no seed: vLLM gives sequence i the seed + i, and -1 means no seed."""
    if n > 1 and seed is not None and seed <= NO_SEED < seed + n:
        raise SteeringError(
            "", f"does not go with n = {n} and seed {seed}: one sequence would get seed -1, none to vLLM"
        )


def refuse_unseeded_sequences(steering: Steering, seed: int | None, n: int) -> None:
    """Refuse n sequences without a seed if each needs a memory of its own: vLLM tells them apart by their seeds alone.

    Our own front ends draw a seed instead.
    """
    if n > 1 and seed is None and steering.remembers:
        raise SteeringError(
            "",
            f'select "quantile", hysteresis, and guard_mean_entropy_nats need a seed with n = {n}: vLLM tells the '
            "sequences apart by nothing else",
        )


def refuse_beam_search(beam_search: bool) -> None:
    """Refuse beam search, which does not sample."""
    if beam_search:
        raise SteeringError("", "does not go with use_beam_search, which does not sample")


def refuse_forced_tokens(thinking_token_budget: bool) -> None:
    """Refuse a thinking budget: vLLM forces its token after steering, and telemetry would report it as sampled."""
    if thinking_token_budget:
        raise SteeringError(
            "",
            "does not go with thinking_token_budget (thinking.budget_tokens on /v1/messages), whose token vLLM forces "
            "after steering; use max_tokens",
        )


def refuse_two_steerings(beside: bool) -> None:
    """Refuse a body with `steering` that has another one in vllm_xargs."""
    if beside:
        raise SteeringError("", "is given twice: as `steering` and in vllm_xargs")


def refuse_reserved(extra: Mapping[str, Any], reserved: Iterable[str]) -> None:
    """Refuse extra arguments that only the server may set."""
    for key in reserved:
        if key in extra:
            raise SteeringError("", f"vllm_xargs.{key} is the server's own and cannot be sent")


def refuse_foreign_lanes(lanes: object, base_seed: object, seed: int | None, n: int, names: Iterable[str]) -> None:
    """Refuse lanes in a form the server does not produce: a worker reads them unchecked, and would crash."""
    if lanes is None and base_seed is None:
        return
    words = lanes if isinstance(lanes, list) else []
    fits = len(words) == 2 * n and all(type(word) is int and 0 <= word < 2**30 for word in words)
    if not fits or (n > 1 and (type(base_seed) is not int or base_seed != seed)):
        raise SteeringError("", f"{' and '.join(names)} are the server's own and cannot be sent")


def refuse_foreign_prompts(lanes: object, prompts: object, n: int, names: Iterable[str]) -> None:
    """Refuse a number of prompts, or lanes of several, in a form the server does not produce."""
    if type(prompts) is not int or prompts < 2 or not isinstance(lanes, list) or len(lanes) != 2 * n * prompts:
        raise SteeringError("", f"{' and '.join(names)} are the server's own and cannot be sent")


def refuse_unnamed_prompt(prompt: int, prompts: int) -> None:
    """Refuse telemetry of several prompts if vLLM does not name each of their requests by its prompt's number."""
    if not 0 <= prompt < prompts:
        raise SteeringError("telemetry", 'must be "none" with several prompts on this version of vLLM')


def refuse_foreign_numbers(packed: object, kinds: Container[int], temperature: float, name: str) -> None:
    """Refuse an encoded request that the server did not make, or that was made for another temperature.

    This is the one second check of a steering: vLLM has front ends other than ours, which accept numbers from anyone.
    """
    words = packed if isinstance(packed, list) else []
    numbers = words[1:]
    fits = len(numbers) == PACKED and all(type(x) in (int, float) and math.isfinite(x) for x in words)
    if fits:
        request = EncodedRequest.unpacked(numbers)
        small = (request.cutoff, *request.delimiters)
        fits = (
            request.kind in kinds
            and request.select in SELECTORS
            and request.scope in SCOPES.values()
            and all(-1 <= x < 2**31 for x in small)
        )
    if not fits:
        raise SteeringError("", f"{name} is the server's own and cannot be sent")
    if request.floats[REQUEST_T] != temperature:
        raise SteeringError(
            "", f"was encoded for temperature {request.floats[REQUEST_T]:g}, but the request has {temperature:g}"
        )


def refuse_elsewhere(found: bool, paths: Iterable[str]) -> None:
    """Refuse steering on endpoints whose response could not report it."""
    if found:
        raise SteeringError("", f"goes with {', '.join(sorted(paths))} only")


# Rules about the request on its engine ------------------------------------------------------------------------


def refuse_late_penalties(penalties: bool, engine: Engine) -> None:
    """Refuse penalties on the V1 runner, which applies them to steered logits."""
    if penalties and engine.v1:
        raise SteeringError(
            "",
            "does not go with presence, frequency or repetition penalties on vLLM's V1 model runner, "
            "which applies them after steering; use the V2 runner or drop them",
        )


def refuse_dropped_processors(engine: Engine) -> None:
    """Refuse speculative decoding on the V1 runner, which then silently drops processors."""
    if engine.v1 and engine.speculative:
        raise SteeringError(
            "", "vLLM's V1 model runner drops logits processors under speculative decoding; use the V2 runner"
        )


def refuse_inexact_rejection(method: str) -> None:
    """Refuse rejection sampling that does not keep the target's distribution, and so the steered one."""
    if method not in EXACT_REJECTION:
        raise SteeringError(
            "",
            f"does not go with rejection_sample_method {method!r}, which may keep a draft token that the steered "
            f"distribution rejects; use {' or '.join(EXACT_REJECTION)}",
        )


def refuse_sharded_sampling(engine: Engine) -> None:
    """Refuse batch-sharded sampling: each rank sees some requests only, and only the first rank's records are read."""
    if engine.sharded_sampling:
        raise SteeringError("", "does not go with --enable-batch-sharded-sampling; start the engine without it")


def refuse_hidden_tokens(steering: Steering, engine: Engine) -> None:
    """Refuse a scope where the engine hides the newest tokens, which decide it."""
    if steering.scope != "all" and engine.hides_newest_tokens:
        raise SteeringError(
            "scope",
            f'"{steering.scope}" needs the engine to be started with '
            "--logits-processors steerdec.processor:EntropySteering (or --no-async-scheduling)",
        )


# Rules about telemetry --------------------------------------------------------------------------


def refuse_built_in_tools(built_in_tools: bool) -> None:
    """Refuse telemetry of a response that takes several engine requests."""
    if built_in_tools:
        raise SteeringError(
            "telemetry", 'must be "none" with built-in tools: each of their turns is a request of its own'
        )


def refuse_unknown_echo(echo: bool, truncated: bool, tokenizer: bool) -> None:
    """Refuse telemetry of an echo that we cannot repeat: the server puts the prompt before the text, not vLLM."""
    if echo and truncated:
        raise SteeringError("telemetry", 'must be "none" with echo and truncate_prompt_tokens')
    if echo and not tokenizer:
        raise SteeringError("telemetry", 'must be "none" with echo on a server without a tokenizer')


def refuse_uncounted_tokens(uncounted: bool) -> None:
    """Refuse telemetry if the number of returned tokens is unknown.

    vLLM hides the ids of hidden reasoning, and the engine may be one token further when a stop string is found.
    """
    if uncounted:
        raise SteeringError(
            "telemetry", 'must be "none" with include_reasoning false and stop, in a stream or with n above 1'
        )


def refuse_too_many_sequences(n: int, most: int, prompts: int = 1) -> None:
    """Refuse telemetry of more sequences than one request may have lanes."""
    if prompts == 1 and n > most:
        raise SteeringError("telemetry", f'must be "none" with n = {n}; with telemetry n is at most {most}')
    if n * prompts > most:
        raise SteeringError(
            "telemetry",
            f'must be "none" with {prompts} prompts and n = {n}; with telemetry prompts times n is at most {most}',
        )
