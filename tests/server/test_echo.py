"""`echo` on the real server: the prompt is in the text as vLLM has it, and telemetry is of the generated tokens."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.test_prompts import complete
from tests.server.test_server import MODEL, STEERING, assert_steered
from tests.support.serving import PATIENCE_S

pytestmark = pytest.mark.engine

SAME = {"fork_temperature": 1.0, "other_temperature": 1.0, "telemetry": "tokens"}
BODY: dict[str, Any] = {"model": MODEL, "temperature": 1.0, "max_tokens": 6, "seed": 5, "echo": True}
CASES: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Once upon a time"},
    "odd text": {"prompt": "caf\u00e9 \U0001f600 <|im_end|>\r\n  x "},
    "token ids": {"prompt": [504, 3104, 253, 0, 1]},
    "several": {"prompt": ["Once upon a time", "The capital of"], "n": 2},
    "several by token ids": {"prompt": [[504, 3104], [253]], "n": 2},
    "with log-probabilities": {"prompt": ["Once upon", "a"], "logprobs": 1},
    "nothing but the prompt": {"prompt": "Once upon a time", "max_tokens": 0},
}


def said(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if name != "steering"}


def assert_same_log_probabilities(one: dict[str, Any] | None, other: dict[str, Any] | None) -> None:
    """Their last digits depend on what is in the prefix cache."""
    if one is None or other is None:
        assert one is other
        return
    assert one["tokens"] == other["tokens"]
    assert one["text_offset"] == other["text_offset"]
    assert one["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_all_but_the_telemetry_is_as_without_steering(server_url: str, case: str) -> None:
    body = BODY | CASES[case]
    plain, steered = (
        httpx.post(f"{server_url}/v1/completions", json=body | more, timeout=PATIENCE_S).json()
        for more in ({}, {"steering": SAME})
    )
    for choice, expected in zip(steered["choices"], plain["choices"], strict=True):
        assert_same_log_probabilities(choice.pop("logprobs"), expected.pop("logprobs"))
        assert said(choice) == expected
    assert steered["usage"] == plain["usage"]
    tokens = [choice["steering"]["tokens"] for choice in steered["choices"]]
    assert sum(tokens) == plain["usage"]["completion_tokens"]
    assert [len(choice["steering"]["entropy_nats"]) for choice in steered["choices"]] == tokens
    streamed = [complete(server_url, stream=True, **body | {"stop": None}, **more) for more in ({}, {"steering": SAME})]
    assert [choice["text"] for choice in streamed[1]] == [choice["text"] for choice in streamed[0]]
    assert [choice["text"] for choice in streamed[1]] == [choice["text"] for choice in plain["choices"]]
    assert [len(choice["steering"]["fork"]) for choice in streamed[1]] == tokens


@pytest.mark.parametrize("stream", [False, True])
def test_telemetry_begins_at_the_first_generated_token(server_url: str, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": ["Once upon a time", "A"], "n": 2, "seed": 5, "steering": STEERING}
    without = complete(server_url, stream=False, return_token_ids=True, **body)
    echoed = complete(server_url, stream=stream, echo=True, **body)
    prompts = [prompt for prompt in body["prompt"] for _ in range(2)]
    for prompt, choice, expected in zip(prompts, echoed, without, strict=True):
        assert choice["text"] == prompt + expected["text"]
        assert_steered(choice["steering"], len(expected["token_ids"]))
        assert choice["steering"]["entropy_nats"] == pytest.approx(expected["steering"]["entropy_nats"], abs=1e-3)
