"""The HTTP request of one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steerdec.problems.prompts import request_body
from steerdec.records.arms import Arm, ArmSet

from ..design.plan import PlannedSample

# vLLM fills in what a request leaves out from the model's generation_config.json (Qwen3: top_p 0.95, top_k 20).
# Truncation would hide what steering does, so it is disabled explicitly.
SAMPLING: dict[str, float | int] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


# Problems whose first sample keeps its tokens under every arm, to be shown side by side in the report.
TRACED_IN_ALL_ARMS = 2


@dataclass(frozen=True)
class Prompting:
    """How a problem becomes a prompt of one model; the same for every sample of a run."""

    model: str
    template: str  # of `steerdec.problems.prompts`
    thinking: bool | None = None  # None: the chat template's default


def is_traced(arms: ArmSet, planned: PlannedSample) -> bool:
    """Return whether the sample keeps its per-token lists.

    These samples do: the first of each problem in the identity arm, which shows the undisturbed entropies, and the
    first of the first problems in every steered arm. A set without an identity arm keeps those of all steered arms.
    An arm whose steering states `"telemetry": "summary"` keeps none.
    """
    if planned.sample > 0 or planned.arm.steering is None or planned.prefix is not None:
        return False  # after a prefix the lists would begin in the middle of the response
    if planned.arm.steering.get("telemetry") == "summary":
        return False
    if planned.arm.role == "identity" or not any(arm.role == "identity" and arm.replay is None for arm in arms.arms):
        return True
    return planned.number < TRACED_IN_ALL_ARMS * len(arms.arms)  # the plan goes problem by problem


def is_root(arms: ArmSet, planned: PlannedSample) -> bool:
    """Return whether a branching arm continues the sample, so that it keeps its token ids and per-token lists."""
    return any(
        arm.branch is not None
        and arm.branch.roots == planned.arm.name
        and arm.branch.root_of(planned.sample) == planned.sample
        for arm in arms.arms
    )


def sample_request(
    planned: PlannedSample,
    prompting: Prompting,
    *,
    max_tokens: int,
    per_token: bool = False,
    token_text: bool = False,
    token_ids: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request.

    Args:
        per_token: request entropy, fork and temperature of every token.
        token_text: request the text of every token.
        token_ids: request the ids of the generated tokens; after a prefix they are always requested.
    """
    path, body = request_body(prompting.template, planned.problem, thinking=prompting.thinking)
    if planned.prefix is not None:
        path, stop = "/v1/completions", {"stop": body["stop"]} if "stop" in body else {}
        body = {"prompt": planned.prefix.token_ids, "return_token_ids": True} | stop
    body |= {
        "model": prompting.model,
        "seed": planned.seed,
        "temperature": planned.arm.temperature,
        "max_tokens": max_tokens,
    } | SAMPLING
    steering = requested_steering(planned.arm, per_token=per_token)
    if steering is not None:
        body["steering"] = steering
    if token_ids:
        body["return_token_ids"] = True
    if token_text:  # comes with the sampled token's log-probability; 0 further candidates
        body |= {"logprobs": True, "top_logprobs": 0} if "messages" in body else {"logprobs": 0}
    return path, body


def tokens_left(planned: PlannedSample, max_tokens: int) -> int:
    """Return how many tokens a response of at most `max_tokens` may still have after a prefix."""
    return max_tokens - (0 if planned.prefix is None else planned.prefix.position)


def requested_steering(arm: Arm, *, per_token: bool) -> dict[str, Any] | None:
    """Return the `steering` object of a request; None for a plain request."""
    if arm.steering is None:
        return None
    # The entropy of the distribution sampled from, to report the delivered dose beside the requested one.
    steering = {"probe_temperature": "applied"} | arm.steering
    return steering | {"telemetry": "tokens"} if per_token else steering


def max_answer_bytes(max_tokens: int, *, per_token: bool) -> int:
    """Return an upper bound for the bytes of an answer: a token's text is short, and has about a dozen numbers."""
    return (1 << 20) + max_tokens * (2048 if per_token else 256)
