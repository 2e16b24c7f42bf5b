"""Requests made to break the server: each is answered, in one plain line where it is refused, and no lane is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from steerdec.telemetry import lanes as telemetry
from tests.support.in_process import InProcess, choices_of, in_process_server

S = {"fork_temperature": 1.3, "other_temperature": 0.7, "telemetry": "tokens"}
OK, BAD = 200, 400
HUGE = 10**400

CASES: dict[str, tuple[Any, int]] = {
    # the object itself
    "empty": ({"steering": {}}, OK),
    "a list of pairs": ({"steering": [["fork_temperature", 1]]}, BAD),
    "an empty list": ({"steering": []}, BAD),
    "false": ({"steering": False}, BAD),
    "zero": ({"steering": 0}, BAD),
    "an empty text": ({"steering": ""}, BAD),
    "text of an object": ({"steering": json.dumps(S)}, OK),
    "text of a text": ({"steering": json.dumps(json.dumps(S))}, BAD),
    "text with a byte order mark": ({"steering": "\ufeff{}"}, BAD),
    "text of NaN": ({"steering": '{"fork_temperature": NaN}'}, BAD),
    "text of Infinity": ({"steering": '{"threshold_nats": Infinity}'}, BAD),
    "deep text": ({"steering": "[" * 5000}, BAD),
    "a key with a dot": ({"steering": {"fork.temperature": 1}}, BAD),
    "a key that is empty": ({"steering": {"": 1}}, BAD),
    "a key of prototypes": ({"steering": {"__proto__": 1}}, BAD),
    "a key of Python": ({"steering": {"__class__": 1}}, BAD),
    "a key of pydantic": ({"steering": {"model_config": {}}}, BAD),
    "a very long key": ({"steering": {"k" * 100_000: 1}}, BAD),
    "a right-to-left key": ({"steering": {"\u202eforks": 1}}, BAD),
    "a surrogate": ({"steering": {"policy": "\ud800"}}, BAD),
    "capital letters": ({"steering": {"Policy": "split"}}, BAD),
    "another policy's field": ({"steering": {"policy": "edt", "fork_temperature": 1}}, BAD),
    "ids of the server": ({"steering": {"thinking_start_id": -1, "scope": "thinking"}}, BAD),
    "a fractional id": ({"steering": {"thinking_start_id": 1.5, "thinking_end_id": 2, "scope": "thinking"}}, BAD),
    "equal delimiters": ({"steering": {"thinking_start_id": 1, "thinking_end_id": 1, "scope": "thinking"}}, BAD),
    # numbers
    "a boolean temperature": ({"steering": {"fork_temperature": True}}, BAD),
    "a text temperature": ({"steering": {"fork_temperature": "1.2"}}, BAD),
    "a negative zero": ({"steering": {"fork_temperature": -0.0}}, OK),
    "almost zero": ({"steering": {"fork_temperature": 1e-300}}, BAD),
    "just too small": ({"steering": {"fork_temperature": 0.0099}}, BAD),
    "just too large": ({"steering": {"other_temperature": 100.0001}}, BAD),
    "a huge integer": ({"steering": {"threshold_nats": HUGE}}, BAD),
    "a huge share": ({"steering": {"select": "random", "fork_rate": HUGE}, "seed": 1}, BAD),
    "a share of one": ({"steering": {"select": "random", "fork_rate": 1}, "seed": 1}, OK),
    "a share of none": ({"steering": {"select": "random", "fork_rate": 0}, "seed": 1}, OK),
    "first of none": ({"steering": {"select": "first", "first_tokens": 0}}, BAD),
    "first as a fraction": ({"steering": {"select": "first", "first_tokens": 1.0}}, BAD),
    "first of 2^31": ({"steering": {"select": "first", "first_tokens": 2**31}}, BAD),
    "a crossed range": ({"steering": {"policy": "dynatemp", "min_temperature": 2, "max_temperature": 1}}, BAD),
    "a probe of nothing": ({"steering": {"probe_temperature": "sampled"}}, BAD),
    "a probe of zero": ({"steering": {"probe_temperature": 0}}, BAD),
    # beside it
    "a negative temperature": ({"steering": S, "temperature": -1}, BAD),
    "a temperature of NaN": (b'{"prompt": "x", "steering": {}, "temperature": NaN}', BAD),
    "a seed of 2^63": ({"steering": S, "seed": 2**63}, BAD),
    "a seed of -2^63": ({"steering": S, "seed": -(2**63)}, OK),
    "a null seed with choices": ({"steering": S, "seed": None, "n": 2}, OK),
    "no choices": ({"steering": S, "n": 0}, BAD),
    "fewer than no choices": ({"steering": S, "n": -1}, BAD),
    "choices beyond all lanes": ({"steering": S, "n": 10**9}, BAD),
    "choices as a boolean": ({"steering": S, "n": True}, OK),
    "choices as null": ({"steering": S, "n": None}, BAD),
    "prompts of no text": ({"steering": S, "prompt": [""]}, OK),
    "a prompt of one text": ({"steering": S, "prompt": ["x"]}, OK),
    "a prompt of nested ids": ({"steering": S, "prompt": [[1, 2]]}, OK),
    "xargs that are a list": ({"steering": S, "vllm_xargs": []}, BAD),
    "xargs that are nested": ({"steering": S, "vllm_xargs": {"a": {"b": 1}}}, BAD),
    "xargs with a null": ({"steering": S, "vllm_xargs": None}, OK),
    "lanes from outside": ({"steering": S, "vllm_xargs": {"steerdec_lanes": [0, 0]}}, BAD),
    "a base seed from outside": ({"vllm_xargs": {"steerdec_base_seed": 0}}, BAD),
    "prompts from outside": ({"steering": S, "vllm_xargs": {"steerdec_prompts": 2}}, BAD),
    "lanes without steering": ({"vllm_xargs": {"steerdec_lanes": [0, 0]}}, BAD),
    "steering twice": ({"steering": S, "vllm_xargs": {"steering": "{}"}}, BAD),
    "steering in xargs as a number": ({"vllm_xargs": {"steering": 5}}, BAD),
    "steering in xargs as a list": ({"vllm_xargs": {"steering": ["{}"]}}, BAD),
    "steering in xargs as broken text": ({"vllm_xargs": {"steering": "{"}}, BAD),
    "in a nested wrapper": ({"extra_body": {"extra_body": {"steering": S}}}, BAD),
    "in text in text": ({"extra_body": json.dumps({"extra_args": json.dumps({"steering": S})})}, BAD),
    # bytes
    "a key twice, the last one counts": (b'{"prompt": "x", "steering": 1, "steering": {}}', OK),
    "an escaped key": (b'{"prompt": "x", "\\u0073teering": 1}', BAD),
    "another encoding": (json.dumps({"prompt": "x", "steering": 1}).encode("utf-16"), BAD),
    "a big-endian encoding": (json.dumps({"prompt": "x", "steering": 1}).encode("utf-32-be"), BAD),
    "a comment": (b'{"prompt": "x", "steering": {} /* */}', BAD),
    "a trailing comma": (b'{"prompt": "x", "steering": {},}', BAD),
    "an end too early": (b'{"prompt": "x", "steering": {', BAD),
    "an unpaired surrogate in the prompt": (b'{"prompt": "\\ud800", "steering": {}}', OK),
    "a text with NUL": (b'{"prompt": "\\u0000", "steering": {}}', OK),
    "a very deep body": (b'{"prompt": "x", "steering": {}, "a": ' + b"[" * 100_000, BAD),
}


@pytest.fixture
def server() -> Iterator[InProcess]:
    with telemetry.created(8, max_lanes=33) as file:
        yield in_process_server(file)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_is_answered(server: InProcess, name: str, stream: bool) -> None:
    body, expected = CASES[name]
    raw = body if isinstance(body, bytes) else json.dumps({"prompt": "x", "stream": stream} | body).encode()
    status, answer = server.post("/v1/completions", raw)
    assert status == expected, answer
    assert server.pool.lent == 0
    if status == BAD:
        message = json.loads(answer)["error"]["message"]
        assert "\n" not in message
        assert len(message) < 400
        assert not any(word in message for word in ("Traceback", "None", "True", "False"))
    elif isinstance(body, dict) and body["steering"] is not None:
        assert all("steering" in choice for choice in choices_of(answer))


def test_at_least_sixty() -> None:
    assert len(CASES) >= 60
