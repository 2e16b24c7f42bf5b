"""The registry of policies, and the parser that turns a request's JSON into one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Literal

from pydantic import ValidationError

from steerdec.policies.dynatemp.fields import DynaTemp
from steerdec.policies.edt.fields import Edt
from steerdec.policies.entropy_target.fields import EntropyTarget
from steerdec.policies.p_less.fields import PLess
from steerdec.policies.split.fields import Split
from steerdec.policies.uniform_top_k.fields import UniformTopK
from steerdec.steering.params import Steering, SteeringError, shown

GROUP: Final = "steerdec.policies"  # entry points of other distributions, each a class beside its steps

BUILT_IN: Final[tuple[type[Steering], ...]] = (
    Split,
    EntropyTarget,
    DynaTemp,
    Edt,
    PLess,
    UniformTopK,
)


def _registered() -> dict[str, type[Steering]]:
    """Return all policies by name, the built-in ones first. Raise RuntimeError if two share a name or a kind."""
    policies: dict[str, type[Steering]] = {}
    outside = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for policy in (*BUILT_IN, *(entry.load() for entry in outside)):
        name = policy.model_fields["policy"].default
        if name in policies or policy.kind in {other.kind for other in policies.values()}:
            raise RuntimeError(f"policy {name} ({policy.__module__}): its name or its kind, {policy.kind}, is taken")
        policies[name] = policy
    return policies


POLICIES: Final = _registered()
KINDS: Final = {policy.kind: policy for policy in POLICIES.values()}


def steps(backend: Literal["reference", "cpu", "triton"]) -> list[tuple[int, Callable[..., Any]]]:
    """Return (kind, `steered`) of every policy for one backend, from the module of that name beside its fields."""
    return [(policy.kind, _step(policy, backend)) for policy in POLICIES.values()]


@cache
def _step(policy: type[Steering], backend: str) -> Callable[..., Any]:
    folder = policy.__module__.rpartition(".")[0]
    step: Callable[..., Any] = import_module(f"{folder}.{backend}").steered
    return step


@cache
def temperature_fields() -> tuple[str, ...]:
    """Return the fields, of all policies, that hold a temperature; arm sets may state these relative to the base."""
    names = {name for policy in POLICIES.values() for name in policy.model_fields if name.endswith("_temperature")}
    return tuple(sorted(names - {"probe_temperature"}))


def parse(value: Any) -> Steering:
    """Return the steering in `value`, an object or its JSON text.

    Raises:
        SteeringError: naming the first invalid field, its value and what is allowed.
    """
    if isinstance(value, Steering):
        return value
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise SteeringError("", f"is not valid JSON ({e})") from None
    if not isinstance(value, dict):
        raise SteeringError("", f"must be an object, not {shown(value)}")
    policy = value.get("policy", "split")
    if not isinstance(policy, str) or policy not in POLICIES:
        raise SteeringError("policy", f"{shown(policy)} is none of {', '.join(POLICIES)}")
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
    return SteeringError(field, f"{shown(first['input'])} {reason}")
