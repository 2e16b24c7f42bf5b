"""The HTTP request of one sample."""

from __future__ import annotations

from typing import Any

from steerdec.problems.prompts import request_body
from steerdec.records.arms import Arm, ArmSet

from ..design.plan import Item

# vLLM fills in what a request leaves out from the model's generation_config.json (Qwen3: top_p 0.95,
# top_k 20). Truncation would hide what steering does, so it is switched off in so many words.
SAMPLING: dict[str, float | int] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


# Problems whose first sample keeps its tokens under every arm, to be laid side by side in the report.
TRACED_IN_ALL_ARMS = 2


def is_traced(arms: ArmSet, item: Item) -> bool:
    """Whether the sample keeps its per-token lists: the first of each problem in the identity arm, which
    shows the undisturbed entropies, and those of the first problems in every steered arm. A set without an
    identity arm keeps those of all steered arms.
    """
    if item.sample > 0 or item.arm.steering is None or item.prefix is not None:
        return False  # after a prefix the lists would begin in the middle of the response
    if item.arm.role == "identity" or not any(arm.role == "identity" and arm.replay is None for arm in arms.arms):
        return True
    return item.number < TRACED_IN_ALL_ARMS * len(arms.arms)  # the plan goes problem by problem


def sample_request(
    item: Item, *, model: str, prompt: str, thinking: bool | None, max_tokens: int, traced: bool = False
) -> tuple[str, dict[str, Any]]:
    """The path and the body. `traced` asks for one entry a token: entropy, fork, temperature, text."""
    path, body = request_body(prompt, item.problem, thinking=thinking)
    if item.prefix is not None:
        path, stop = "/v1/completions", {"stop": body["stop"]} if "stop" in body else {}
        body = {"prompt": item.prefix.token_ids, "return_token_ids": True} | stop
    body |= {
        "model": model,
        "seed": item.seed,
        "temperature": item.arm.temperature,
        "max_tokens": max_tokens,
    } | SAMPLING
    steering = asked_steering(item.arm, traced)
    if steering is not None:
        body["steering"] = steering
    if traced:  # of the sampled token only, for its text; 0 further candidates
        body |= {"logprobs": True, "top_logprobs": 0} if "messages" in body else {"logprobs": 0}
    return path, body


def tokens_left(item: Item, max_tokens: int) -> int:
    """How many a response of at most `max_tokens` may still have; those of a prefix are spent."""
    return max_tokens - (0 if item.prefix is None else item.prefix.position)


def asked_steering(arm: Arm, traced: bool) -> dict[str, Any] | None:
    """The `steering` object of a request; None for a plain one."""
    if arm.steering is None:
        return None
    # What was really sampled from, so that the dose delivered can be told beside the one asked for.
    asked = {"probe_temperature": "applied"} | arm.steering
    return asked | {"telemetry": "tokens"} if traced else asked


def max_answer_bytes(max_tokens: int, traced: bool) -> int:
    """More than an honest answer can have: a token's text is short, and a traced one has a dozen numbers beside it."""
    return (1 << 20) + max_tokens * (2048 if traced else 256)
