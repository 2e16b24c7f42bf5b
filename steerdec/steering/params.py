"""The steering of one request: what a user may ask for, checked in one place.

HTTP bodies, `SamplingParams.extra_args`, the command line and Python all go through
:func:`parse`; nothing downstream checks the same thing again.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

# 80th percentile of H over 10^6 tokens of Qwen3-8B at T = 1 (arXiv 2506.01939, section 3).
PAPER_THRESHOLD_NATS = 0.672

# vLLM raises every temperature in (0, 0.01) to 0.01. A steered temperature that small is
# refused instead, so that what was asked for is what was done.
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0


class SteeringError(ValueError):
    """The steering asked for cannot be given; `field` names the culprit, "" when it is the whole object."""

    def __init__(self, field: str, reason: str) -> None:
        name = field if field.isprintable() else repr(field)  # whatever a user called it: one plain line
        super().__init__(f"steering.{name}: {reason}" if field else f"steering: {reason}")
        self.field = field
        self.reason = reason


def _number(value: Any) -> Any:
    """JSON has one kind of number, so 1 is a good float; true and "1" are not."""
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
Temperature = Annotated[Number, Field(ge=0.0, le=MAX_TEMPERATURE), AfterValidator(_not_between_0_and_min)]
PositiveTemperature = Annotated[Number, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
Probe = Annotated[
    Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)] | Literal["applied"],
    BeforeValidator(_applied_or_number),
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Select = Literal["entropy", "random", "first", "all"]


class _Steering(BaseModel):
    """What every policy shares: which tokens are forks, where to look, what to send back."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    select: Select = Field(
        "entropy",
        description="Which tokens are steered as forks: those with H above `threshold_nats`, a random "
        "share `fork_rate` of all (the placebo), the first `first_tokens` generated, or all.",
    )
    threshold_nats: Annotated[Number, Field(ge=0.0)] | None = Field(
        None, description="A token is a fork where H exceeds this. Default: the server's calibration, else 0.672."
    )
    fork_rate: Annotated[Number, Field(ge=0.0, le=1.0)] | None = Field(
        None, description='Share of tokens taken as forks; goes with `select: "random"`, which also needs a `seed`.'
    )
    first_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description='How many generated tokens are forks, from the first; goes with `select: "first"`.'
    )
    scope: Literal["all", "thinking", "answer"] = Field(
        "all", description="Steer everywhere, only inside the thinking block, or only after it."
    )
    thinking_start_id: TokenId | None = Field(
        None, description="Token that opens the thinking block. Default: the tokenizer's `<think>`."
    )
    thinking_end_id: TokenId | None = Field(
        None, description="Token that closes the thinking block. Default: the tokenizer's `</think>`."
    )
    telemetry: Literal["summary", "tokens", "none"] = Field(
        "summary", description="What is sent back: totals, also one entry per generated token, or nothing."
    )

    probe_temperature: Probe | None = Field(
        None,
        description="Also send back the entropy at a second temperature: of softmax(z / probe_temperature), or with "
        '"applied" of the distribution really sampled, before any top-p.',
    )

    @model_validator(mode="after")
    def _goes_with_its_selector(self) -> _Steering:
        for select, field in (("random", "fork_rate"), ("first", "first_tokens")):
            given = getattr(self, field) is not None
            if self.select == select and not given:
                raise SteeringError(field, f'is required with select "{select}"')
            if self.select != select and given:
                raise SteeringError(field, f'goes with select "{select}" only, not with "{self.select}"')
        return self


class Split(_Steering):
    """Two temperatures: one at forks, one everywhere else (arXiv 2506.01939, equation 5)."""

    policy: Literal["split"] = "split"
    fork_temperature: Temperature | None = Field(
        None, description="Temperature at forks; 0 is greedy there. Default: the request's temperature."
    )
    other_temperature: Temperature | None = Field(
        None, description="Temperature at all other tokens; 0 is greedy there. Default: the request's temperature."
    )


class _Ranged(_Steering):
    min_temperature: PositiveTemperature
    max_temperature: PositiveTemperature

    @model_validator(mode="after")
    def _min_below_max(self) -> _Ranged:
        if self.min_temperature > self.max_temperature:
            raise SteeringError(
                "min_temperature", f"{self.min_temperature:g} is above max_temperature, {self.max_temperature:g}"
            )
        return self


class EntropyTarget(_Ranged):
    """At forks, the temperature at which the entropy of the sampled distribution changes by `delta_nats`.

    The change is counted from softmax(z / T) at the request's own temperature T. A target outside
    what [`min_temperature`, `max_temperature`] can reach gets the nearer end.
    """

    policy: Literal["entropy_target"] = "entropy_target"
    delta_nats: Annotated[Number, Field(ge=-20.0, le=20.0)] = Field(
        description="Rise of the entropy at forks; negative lowers it."
    )
    min_temperature: PositiveTemperature = Field(0.05, description="Lower end of the search.")
    max_temperature: PositiveTemperature = Field(5.0, description="Upper end of the search.")


class DynaTemp(_Ranged):
    """T = min + (max - min) (H / ln N)^exponent, N the vocabulary (llama.cpp's temp_ext, before any truncation)."""

    policy: Literal["dynatemp"] = "dynatemp"
    select: Select = Field("all", description="Which tokens get the dynamic temperature; all, as in the original.")
    min_temperature: PositiveTemperature = Field(0.5, description="Temperature at H = 0.")
    max_temperature: PositiveTemperature = Field(1.5, description="Temperature at H = ln N.")
    exponent: Annotated[Number, Field(gt=0.0, le=10.0)] = Field(1.0, description="Shape of the curve between.")


class Edt(_Steering):
    """T = T0 base^(theta / H), T0 the request's temperature, never below 0.01 (arXiv 2403.14541)."""

    policy: Literal["edt"] = "edt"
    select: Select = Field("all", description="Which tokens get the dynamic temperature; all, as in the original.")
    theta: Annotated[Number, Field(gt=0.0, le=100.0)] = Field(0.1, description="Strength of the cooling.")
    base: Annotated[Number, Field(gt=0.0, lt=1.0)] = Field(0.8, description="Base of the power.")


Steering = Split | EntropyTarget | DynaTemp | Edt
POLICIES: dict[str, type[Split] | type[EntropyTarget] | type[DynaTemp] | type[Edt]] = {
    "split": Split,
    "entropy_target": EntropyTarget,
    "dynatemp": DynaTemp,
    "edt": Edt,
}


def parse(value: Any) -> Steering:
    """The steering that `value` (an object, or its JSON text) asks for.

    Raises:
        SteeringError: naming the first wrong field, what stood there and what is allowed.
    """
    if isinstance(value, Steering):
        return value
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise SteeringError("", f"is not valid JSON ({e})") from None
    if not isinstance(value, dict):
        raise SteeringError("", f"must be an object, not {_shown(value)}")
    policy = value.get("policy", "split")
    if not isinstance(policy, str) or policy not in POLICIES:
        raise SteeringError("policy", f"{_shown(policy)} is none of {', '.join(POLICIES)}")
    try:
        return POLICIES[policy].model_validate(value)
    except SteeringError:
        raise
    except ValidationError as e:
        raise _first_error(e, policy) from None


def _first_error(error: ValidationError, policy: str) -> SteeringError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SteeringError):
        return cause
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = ", ".join(POLICIES[policy].model_fields)
        return SteeringError(field[:60], f"is not a field of policy {policy} (there are: {known})")
    if first["type"] == "missing":
        return SteeringError(field, f"is required by policy {policy}")
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return SteeringError(field, f"{_shown(first['input'])} {reason}")


def _shown(value: Any) -> str:
    """`value` as one short line of JSON-like text, whatever it is."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."
