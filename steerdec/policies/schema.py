"""The JSON Schema of the `steering` object, made from the policies' models: what GET /v1/steering/schema answers."""

from __future__ import annotations

from typing import Any, Final

from steerdec.policies.registry import POLICIES
from steerdec.steering.params import Steering

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# Behind a validator of ours, pydantic leaves its own names of the bounds.
# A window without a guard is refused.
_GUARD: Final = {
    "if": {"required": ["guard_window_tokens"], "properties": {"guard_window_tokens": {"type": "integer"}}},
    "then": {"required": ["guard_mean_entropy_nats"], "properties": {"guard_mean_entropy_nats": {"type": "number"}}},
}
_BOUNDS: Final = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def request_schema() -> dict[str, Any]:
    """Return the schema of a steering object: one alternative per policy, in the registry's order.

    Apart from the guard's window, what relates two fields is not in it: that the minimum of a range is not above its
    maximum, and that a field goes with some values of another only. `x-with` of a field lists these values by the name
    of the other field.
    """
    return {"$schema": DIALECT, "title": "steering", "oneOf": [policy_schema(policy) for policy in POLICIES.values()]}


def policy_schema(policy: type[Steering]) -> dict[str, Any]:
    """Return the schema of one policy's object, its own fields after the shared ones."""
    schema: dict[str, Any] = _standard(policy.model_json_schema())
    name = policy.model_fields["policy"].default
    required = [*schema.get("required", []), *([] if name == "split" else ["policy"])]  # it is the default
    return schema | _GUARD | {"title": name, "required": required}


def _standard(value: Any) -> Any:
    """Return a schema with the standard names of bounds, and without the titles that pydantic makes of names."""
    if isinstance(value, list):
        return [_standard(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {_BOUNDS.get(key, key): _standard(item) for key, item in value.items()}
    if isinstance(made.get("title"), str):
        del made["title"]
    return made
