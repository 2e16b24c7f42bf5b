"""The part that all policies share: the fields that select tokens, and their types.

A policy (`steerdec.policies`) adds its own fields. `steerdec.policies.registry.parse` makes a policy of a request's
JSON; `steerdec.steering.admission` decides whether a valid steering can be applied to a given request.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

# 80th percentile of H over 10^6 tokens of Qwen3-8B at T = 1 (arXiv 2506.01939, section 3).
PAPER_THRESHOLD_NATS = 0.672

# vLLM raises every temperature in (0, 0.01) to 0.01. Steering refuses one that small, so that a request never gets
# a temperature other than the one it states.
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0

DEFAULT_QUANTILE = 0.8  # the usual share of tokens that are not forks
DEFAULT_GUARD_WINDOW_TOKENS = 64
LEAST_START_NATS = 1e-4  # a moving threshold is never below it


class SteeringError(ValueError):
    """The steering is invalid or cannot be applied; `field` names the invalid field, "" the object as a whole."""

    def __init__(self, field: str, reason: str) -> None:
        name = (
            field if field.isprintable() else repr(field)
        )  # the name comes from the user, the message has to be one plain line
        super().__init__(f"steering.{name}: {reason}" if field else f"steering: {reason}")
        self.field = field
        self.reason = reason


def _number(value: Any) -> Any:
    """Return `value` as a float. JSON has one number type, so 1 is valid; true and "1" are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        raise ValueError("is too large") from None


def _not_between_0_and_min(value: float) -> float:
    if 0.0 < value < MIN_TEMPERATURE:
        raise ValueError(f"must be 0 (greedy) or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}")
    return value


def _applied_or_number(value: Any) -> Any:
    if value == "applied":
        return value
    try:
        number = _number(value)
    except ValueError:
        number = -1.0
    if not MIN_TEMPERATURE <= number <= MAX_TEMPERATURE:
        raise ValueError(f'must be "applied" or a temperature from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}')
    return number


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Temperature = Annotated[
    Number,
    Field(ge=0.0, le=MAX_TEMPERATURE),
    AfterValidator(_not_between_0_and_min),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": MIN_TEMPERATURE, "maximum": MAX_TEMPERATURE}, {"const": 0}]}
    ),
]
PositiveTemperature = Annotated[Number, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
Probe = Annotated[
    Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)] | Literal["applied"],
    BeforeValidator(_applied_or_number),
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Select = Literal["entropy", "quantile", "random", "first", "all"]


def only_with(**values: list[str]) -> dict[str, Any]:
    """Return what a field's JSON schema says of the values of other fields with which this one has a meaning."""
    return {"x-with": values}


BESIDE_FORKS: Final = only_with(
    select=["entropy", "quantile", "random", "first"]
)  # with "all" there are no other tokens


class Applied(NamedTuple):
    """The temperature that a steering applies to each group of tokens; None if it depends on the logits."""

    fork: float | None
    other: float | None


class Steering(BaseModel):
    """What a request asks for: which tokens are steered, how, and what the response reports. One subclass per policy.

    A subclass sets `policy` and `kind`, adds its fields, and implements `temperatures` and `parameters`.
    """

    kind: ClassVar[int]  # stands for the policy in an encoded request; unique, never reused
    reports_fork_temperature: ClassVar[bool] = True  # False where forks have none: what is kept is equally likely

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    select: Select = Field(
        "entropy",
        description="Which tokens are steered as forks: those with H above `threshold_nats`, those with H above a "
        "`quantile` of the response's own entropies so far, a random share `fork_rate` of all (the placebo), the first "
        "`first_tokens` generated, or all.",
    )
    threshold_nats: Annotated[Number, Field(ge=0.0)] | None = Field(
        None,
        description="A token is a fork where H exceeds this. Default: the server's own (`steerdec serve --threshold`, "
        'a number or a calibration), else 0.672. With `select: "quantile"`, of the first token.',
        json_schema_extra=only_with(select=["entropy", "quantile"]),
    )
    quantile: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description='Which quantile of the entropies so far is the threshold; goes with `select: "quantile"`. '
        "Default: 0.8, so that a fifth of the tokens are forks.",
        json_schema_extra=only_with(select=["quantile"]),
    )
    hysteresis: Annotated[Number, Field(ge=0.0, lt=1.0)] | None = Field(
        None,
        description="By which share of itself H has to fall below the threshold before a run of forks ends; goes with "
        '`select: "entropy"` and `"quantile"`. Default: 0, each token is decided by itself.',
        json_schema_extra=only_with(select=["entropy", "quantile"]),
    )
    fork_rate: Annotated[Number, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description='Share of tokens taken as forks; goes with `select: "random"`, which also needs a `seed`.',
        examples=[0.2],
        json_schema_extra=only_with(select=["random"]),
    )
    first_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None,
        description='How many generated tokens are forks, from the first; goes with `select: "first"`.',
        examples=[20],
        json_schema_extra=only_with(select=["first"]),
    )
    scope: Literal["all", "thinking", "answer"] = Field(
        "all", description="Steer everywhere, only inside the thinking block, or only after it."
    )
    thinking_start_id: TokenId | None = Field(
        None,
        description="Token that opens the thinking block. Default: the tokenizer's `<think>`.",
        json_schema_extra=only_with(scope=["thinking", "answer"]),
    )
    thinking_end_id: TokenId | None = Field(
        None,
        description="Token that closes the thinking block. Default: the tokenizer's `</think>`.",
        json_schema_extra=only_with(scope=["thinking", "answer"]),
    )
    guard_mean_entropy_nats: Annotated[Number, Field(ge=0.0)] | None = Field(
        None,
        description="Cap on the running mean of H: from the first token at which it is exceeded, nothing more of this "
        "response is steered.",
    )
    guard_window_tokens: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="How many tokens that mean is over; the guard acts from this number of tokens on. Goes with "
        "`guard_mean_entropy_nats`. Default: 64.",
    )
    telemetry: Literal["summary", "tokens", "none"] = Field(
        "summary", description="What is sent back: totals, also one entry per generated token, or nothing."
    )
    stream_telemetry: Literal["chunks", "end"] = Field(
        "chunks",
        description="Where a stream has the lists: in each chunk those of its own tokens, or all in the chunk that "
        "ends a choice, and there in `delta` too, as helpers that put a final message together need it.",
    )
    probe_temperature: Probe | None = Field(
        None,
        description="Also send back the entropy at a second temperature: of softmax(z / probe_temperature), or with "
        '"applied" of the distribution really sampled, before any top-p.',
    )

    @model_validator(mode="after")
    def _goes_with_its_selector(self) -> Steering:
        for select, field in (("random", "fork_rate"), ("first", "first_tokens")):
            given = getattr(self, field) is not None
            if self.select == select and not given:
                raise SteeringError(field, f'is required with select "{select}"')
            if self.select != select and given:
                raise SteeringError(field, f'goes with select "{select}" only, not with "{self.select}"')
        for field, selectors in (("quantile", ("quantile",)), ("hysteresis", ("entropy", "quantile"))):
            if getattr(self, field) is not None and self.select not in selectors:
                allowed = " or ".join(f'"{select}"' for select in selectors)
                raise SteeringError(field, f'goes with select {allowed} only, not with "{self.select}"')
        if self.select == "quantile" and self.threshold_nats is not None and self.threshold_nats < LEAST_START_NATS:
            raise SteeringError(
                "threshold_nats",
                f"{self.threshold_nats:g} is below {LEAST_START_NATS:g}, from where a threshold cannot move: select "
                '"quantile" begins with it',
            )
        if self.guard_window_tokens is not None and self.guard_mean_entropy_nats is None:
            raise SteeringError("guard_window_tokens", "goes with guard_mean_entropy_nats only, which is not given")
        return self

    @property
    def remembers(self) -> bool:
        """Return whether what is done to a token depends on the response's earlier entropies."""
        return self.select == "quantile" or bool(self.hysteresis) or self.guard_mean_entropy_nats is not None

    def applied(self, request_temperature: float) -> Applied:
        """Return the temperatures of forks and of all other tokens of a request sampled at `request_temperature`.

        With `select` "all" every token is a fork, so both are the same. Arms, dose matching, preflight checks and
        reports all use this function.
        """
        fork, other = self.temperatures(request_temperature)
        return Applied(fork, fork if self.select == "all" else other)

    def temperatures(self, request_temperature: float) -> Applied:
        """Return the policy's temperatures at tokens that are forks, and at those that are not."""
        return Applied(None, request_temperature)

    def parameters(self, request_temperature: float) -> tuple[float, ...]:
        """Return the numbers that the policy's steps read, at most `encoding.PARAMETERS` of them."""
        raise NotImplementedError


class Ranged(Steering):
    """A policy whose temperatures lie between two fields of the request."""

    min_temperature: PositiveTemperature
    max_temperature: PositiveTemperature

    @model_validator(mode="after")
    def _min_below_max(self) -> Ranged:
        if self.min_temperature > self.max_temperature:
            raise SteeringError(
                "min_temperature", f"{self.min_temperature:g} is above max_temperature, {self.max_temperature:g}"
            )
        return self


def shown(value: Any) -> str:
    """Return `value` as one short line of JSON, the form in which a client sent it."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text = text if text.isprintable() else json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # from Python, not from JSON
        text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
