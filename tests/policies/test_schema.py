"""GET /v1/steering/schema: a JSON Schema that takes what the parser takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from steerdec.policies import registry
from steerdec.policies.schema import DIALECT, request_schema
from steerdec.steering.params import SteeringError

SCHEMA = request_schema()
BY_POLICY = {one["title"]: one for one in SCHEMA["oneOf"]}
VALUES: list[Any] = [None, True, "1", [], -21, -20, -1, 0, 0.001, 0.01, 0.5, 1, 1.5, 5, 11, 64, 65, 100, 101, 2**31]
WORDS = [
    "entropy",
    "random",
    "first",
    "all",
    "thinking",
    "answer",
    "summary",
    "tokens",
    "none",
    "applied",
    "chunks",
    "end",
]


def accepted(steering: dict[str, Any]) -> bool:
    try:
        registry.parse(steering)
    except SteeringError:
        return False
    return True


def base(policy: str, field: str) -> dict[str, Any]:
    """A valid object of a policy in which `field` has a meaning, with what that and the policy require."""
    schema = BY_POLICY[policy]
    asked = {"policy": policy, "select": schema["properties"][field].get("x-with", {}).get("select", ["entropy"])[0]}
    for name, one in schema["properties"].items():
        if name in schema["required"] or (
            asked["select"] not in ("entropy", "all") and asked["select"] in one.get("x-with", {}).get("select", [])
        ):
            asked |= {name: one["examples"][0]} if "examples" in one else {}
    return asked


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == DIALECT
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert list(BY_POLICY) == list(registry.POLICIES)


@pytest.mark.parametrize("policy", registry.POLICIES)
def test_schema_and_parser_take_the_same_values_of_every_field(policy: str) -> None:
    validator = Draft202012Validator(SCHEMA)
    for field in BY_POLICY[policy]["properties"]:
        if field in ("policy", "select"):
            continue
        asked = base(policy, field)
        assert accepted(asked)
        for value in [*VALUES, *WORDS]:
            tried = asked | {field: value}
            if value is None and field in ("fork_rate", "first_tokens"):
                continue  # required with their selector, which no schema of a field says
            if field in ("min_temperature", "max_temperature") and isinstance(value, int | float):
                tried |= {"min_temperature": value, "max_temperature": value}  # so that the range is none
            assert validator.is_valid(tried) == accepted(tried), tried


@pytest.mark.parametrize("policy", registry.POLICIES)
def test_unknown_fields_and_missing_ones_are_refused_by_both(policy: str) -> None:
    validator = Draft202012Validator(SCHEMA)
    for tried in ({"policy": policy, "nonsense": 1}, {"policy": policy}, {"policy": policy, "select": "nonsense"}):
        assert validator.is_valid(tried) == accepted(tried), tried


def test_a_plain_object_is_the_policy_split() -> None:
    validator = Draft202012Validator(SCHEMA)
    assert validator.is_valid({"fork_temperature": 1.2})
    assert not validator.is_valid({"policy": "nonsense"})


@pytest.mark.parametrize("policy", registry.POLICIES)
def test_every_field_says_what_it_means(policy: str) -> None:
    schema = BY_POLICY[policy]
    assert schema["description"]
    assert all(one.get("description") for name, one in schema["properties"].items() if name != "policy")
