"""Parse and check the answers of an endpoint, field by field: nothing from the network is trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from steerdec.common.errors import SteerdecError
from steerdec.common.token_texts import texts_of_logprobs
from steerdec.common.validation import shown

Count = Annotated[int, Field(ge=0)]
Nats = Annotated[FiniteFloat, Field(ge=0.0)]


class MalformedAnswerError(SteerdecError, ValueError):
    """The answer does not match the request."""


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generated text. `forks` and `mean_entropy_nats` are None if nothing was steered.

    The lists have one entry per generated token and are None unless they were requested.
    """

    text: str
    finish_reason: str
    completion_tokens: int
    forks: int | None = None
    mean_entropy_nats: float | None = None
    entropy_nats: list[float | None] | None = None
    fork: list[bool] | None = None
    temperature: list[float | None] | None = None
    token_text: list[str] | None = None
    mean_probe_entropy_nats: float | None = None  # at the probe temperature, if one was requested
    probe_entropy_nats: list[float | None] | None = None
    guard_token: int | None = None  # the first that was not steered because of the guard
    token_ids: list[int] | None = None  # without the token that ended the text, if `return_token_ids` was requested


class _Telemetry(BaseModel):
    tokens: Count
    forks: Count
    mean_entropy_nats: Nats | None = None  # None if no token was generated
    threshold_nats: Nats | None = None
    entropy_nats: list[float | None] | None = None
    fork: list[bool] | None = None
    temperature: list[float | None] | None = None
    mean_probe_entropy_nats: Nats | None = None
    probe_entropy_nats: list[float | None] | None = None
    guard_token: Count | None = None


class _Message(BaseModel):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the field's older name


class _Choice(BaseModel):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop text or token that ended the text; None: the model's own end
    token_ids: list[Count] | None = None
    logprobs: dict[str, Any] | None = None
    steering: _Telemetry | None = None


class _Usage(BaseModel):
    completion_tokens: Count


class _Response(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: _Usage


def parse_answer(body: bytes, *, max_tokens: int, steering: dict[str, Any] | None) -> Answer:
    """Return the answer in `body` to a request with this `steering`.

    Raises:
        MalformedAnswerError: it is not a completion of at most `max_tokens` tokens, did not finish, or its telemetry
            does not show the requested steering.
    """
    try:
        response = _Response.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise MalformedAnswerError(f"{place}: {first['msg']}") from None
    choice, tokens = response.choices[0], response.usage.completion_tokens
    if choice.finish_reason not in ("stop", "length"):
        raise MalformedAnswerError(f'finish_reason is {shown(choice.finish_reason)}, not "stop" or "length"')
    if tokens > max_tokens:
        raise MalformedAnswerError(f"{tokens} tokens were generated; the request allowed {max_tokens}")
    if choice.token_ids is not None and len(choice.token_ids) != tokens:
        raise MalformedAnswerError(f"token_ids has {len(choice.token_ids)} entries for {tokens} tokens")
    answer = Answer(
        text=_text(choice),
        finish_reason=choice.finish_reason,
        completion_tokens=tokens,
        token_ids=_ids_of_text(choice),
    )
    if steering is None:
        if choice.steering is not None:
            raise MalformedAnswerError("a plain request was steered: the server has a default policy")
        return answer
    return _with_telemetry(answer, choice, steering)


def _text(choice: _Choice) -> str:
    """Return the whole text, with the reasoning back in front if a parser on the server split it off."""
    if choice.message is None:
        if choice.text is None:
            raise MalformedAnswerError("choices.0 has neither text nor message")
        return choice.text
    reasoning = choice.message.reasoning or choice.message.reasoning_content
    content = choice.message.content
    if not reasoning:
        return content or ""
    return f"<think>{reasoning}" if content is None else f"<think>{reasoning}</think>{content}"


def _with_telemetry(answer: Answer, choice: _Choice, steering: dict[str, Any]) -> Answer:
    telemetry = choice.steering
    if telemetry is None:
        raise MalformedAnswerError("choices.0 has no steering object: the request was not steered")
    requested, used = steering.get("threshold_nats"), telemetry.threshold_nats
    if requested is not None and used is not None and not math.isclose(requested, used, rel_tol=1e-5, abs_tol=1e-7):
        raise MalformedAnswerError(f"threshold_nats is {used:g}, not the {requested:g} requested")  # may be float32
    if telemetry.forks > telemetry.tokens:
        raise MalformedAnswerError(f"{telemetry.forks} forks among {telemetry.tokens} tokens")
    if steering.get("telemetry") == "tokens":
        probe = () if steering.get("probe_temperature") is None else ("probe_entropy_nats",)
        for name in ("entropy_nats", "fork", "temperature", *probe):
            entries = getattr(telemetry, name)
            if entries is None or len(entries) != telemetry.tokens:
                raise MalformedAnswerError(f"steering.{name} does not have {telemetry.tokens} entries, one per token")
    return replace(
        answer,
        forks=telemetry.forks,
        mean_entropy_nats=telemetry.mean_entropy_nats,
        entropy_nats=telemetry.entropy_nats,
        fork=telemetry.fork,
        temperature=telemetry.temperature,
        token_text=texts_of_logprobs(choice.logprobs, telemetry.tokens),
        mean_probe_entropy_nats=telemetry.mean_probe_entropy_nats,
        probe_entropy_nats=telemetry.probe_entropy_nats,
        guard_token=telemetry.guard_token,
    )


def _ids_of_text(choice: _Choice) -> list[int] | None:
    ended_by_token = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
    return choice.token_ids[:-1] if choice.token_ids and ended_by_token else choice.token_ids
