"""The official OpenAI client for Python on every endpoint: streamed or not, steered or not, one choice or four."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai import OpenAI

from tests.server.test_server import MODEL, QUESTION, STEERING, assert_steered

pytestmark = pytest.mark.engine

SAMPLING: dict[str, Any] = {"model": MODEL, "temperature": 1.0}
LISTS = ("entropy_nats", "fork", "temperature")
TOKENS = 12
VOCABULARY = 49_152


@dataclass
class Choice:
    """A choice, whole or put together from its chunks."""

    text: str = ""
    tokens: int = 0
    steering: dict[str, Any] = field(default_factory=dict)
    entropies_nats: list[float] = field(default_factory=list)  # computed here, from log-probabilities

    def add_steering(self, report: dict[str, Any] | None) -> None:
        for name, value in (report or {}).items():
            self.steering[name] = self.steering.get(name, []) + value if name in LISTS else value


@pytest.fixture(scope="module")
def client(server_url: str) -> OpenAI:
    return OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0)


def entropy(log_probabilities: Any) -> float:
    return -sum(math.exp(v) * v for v in log_probabilities if v > -200)


def asked(steering: dict[str, Any] | None, n: int, **more: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    if steering is not None:
        extra["steering"] = steering
    return SAMPLING | {"n": n, "seed": 5, "max_tokens": TOKENS, "extra_body": extra} | more


def chat(client: OpenAI, steering: dict[str, Any] | None, n: int, stream: bool, **more: Any) -> list[Choice]:
    found = [Choice() for _ in range(n)]
    answer = client.chat.completions.create(**asked(steering, n, messages=QUESTION, stream=stream, **more))
    for chunk in answer if stream else [answer]:
        for part in chunk.choices:
            choice = found[part.index]
            choice.text += (part.delta if stream else part.message).content or ""
            choice.tokens += len((part.model_extra or {}).get("token_ids") or [])
            choice.add_steering((part.model_extra or {}).get("steering"))
            if part.logprobs:
                choice.entropies_nats += [
                    entropy(t.logprob for t in step.top_logprobs) for step in part.logprobs.content
                ]
    return found


def completions(client: OpenAI, steering: dict[str, Any] | None, n: int, stream: bool, **more: Any) -> list[Choice]:
    found = [Choice() for _ in range(n)]
    answer = client.completions.create(**asked(steering, n, prompt="Once upon a time", stream=stream, **more))
    for chunk in answer if stream else [answer]:
        for part in chunk.choices:
            choice = found[part.index]
            choice.text += part.text
            choice.tokens += len((part.model_extra or {}).get("token_ids") or [])
            choice.add_steering((part.model_extra or {}).get("steering"))
            if part.logprobs:
                choice.entropies_nats += [entropy(step.values()) for step in part.logprobs.top_logprobs]
    return found


ENDPOINTS = {"chat": chat, "completions": completions}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_steered_choices_tell_the_truth_streamed_or_not(client: OpenAI, endpoint: str, n: int) -> None:
    whole, streamed = (ENDPOINTS[endpoint](client, STEERING, n, stream) for stream in (False, True))
    for choice in (*whole, *streamed):
        assert_steered(choice.steering, choice.tokens)
    for one, other in zip(whole, streamed, strict=True):
        assert one.text == other.text
        assert one.steering["entropy_nats"] == pytest.approx(other.steering["entropy_nats"], abs=1e-3)
    assert n == 1 or len({choice.text for choice in whole}) > 1


EVERY_TOKEN: dict[str, dict[str, Any]] = {
    "chat": {"logprobs": True, "top_logprobs": VOCABULARY},
    "completions": {"logprobs": VOCABULARY},
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_entropies_are_those_of_the_log_probabilities(client: OpenAI, endpoint: str) -> None:
    """A few tokens only: every log-probability of one is megabytes of JSON."""
    (choice,) = ENDPOINTS[endpoint](client, STEERING, 1, False, max_tokens=3, **EVERY_TOKEN[endpoint])
    assert choice.tokens == len(choice.entropies_nats) == 3
    assert choice.steering["entropy_nats"] == pytest.approx(choice.entropies_nats, abs=1e-3)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_unsteered_choices_are_those_of_the_identity_and_carry_nothing(client: OpenAI, endpoint: str, n: int) -> None:
    whole, streamed = (ENDPOINTS[endpoint](client, None, n, stream) for stream in (False, True))
    identity = ENDPOINTS[endpoint](client, {"fork_temperature": 1.0}, n, False)
    assert [c.text for c in whole] == [c.text for c in streamed] == [c.text for c in identity]
    assert [c.steering for c in (*whole, *streamed)] == [{}] * 2 * n
    assert [c.steering["tokens"] for c in identity] == [c.tokens for c in identity]


@pytest.mark.parametrize("steering", [STEERING, None], ids=["steered", "unsteered"])
def test_responses_streamed_and_whole_are_alike(client: OpenAI, steering: dict[str, Any] | None) -> None:
    body: dict[str, Any] = SAMPLING | {"input": "Name three animals.", "max_output_tokens": TOKENS}
    body["extra_body"] = {"seed": 5} | ({} if steering is None else {"steering": steering})
    whole = client.responses.create(**body)
    (closing,) = [e.response for e in client.responses.create(**body, stream=True) if e.type in ENDS]
    assert whole.output_text == closing.output_text != ""
    for response in (whole, closing):
        report = (response.model_extra or {}).get("steering")
        if steering is None:
            assert report is None
        else:
            assert_steered(report, response.usage.output_tokens)


ENDS = ("response.completed", "response.incomplete")


@pytest.mark.parametrize("kind", ["tokens", "summary"])
def test_the_clients_helpers_end_with_the_whole_telemetry(client: OpenAI, kind: str) -> None:
    extra = {"seed": 5, "steering": STEERING | {"telemetry": kind, "stream_telemetry": "end"}}
    body: dict[str, Any] = SAMPLING | {"messages": QUESTION, "max_tokens": TOKENS, "extra_body": extra}
    whole: Any = client.chat.completions.create(**body).choices[0]
    with client.chat.completions.stream(**body) as stream:
        stream.until_done()  # get_final_completion() would raise for the answer's length
        final: Any = stream.current_completion_snapshot.choices[0]
    assert final.message.content == whole.message.content
    assert final.message.steering == whole.steering

    body = SAMPLING | {"input": "Name three animals.", "max_output_tokens": TOKENS, "extra_body": extra}
    response: Any = client.responses.create(**body)
    with client.responses.stream(**body) as events:
        ended: Any = events.get_final_response()
    assert ended.steering == response.steering


def test_chunks_without_tokens_have_no_steering(client: OpenAI) -> None:
    for steering, carrying in ((STEERING, None), (STEERING | {"stream_telemetry": "end"}, 1)):
        chunks = list(client.chat.completions.create(**asked(steering, 1, messages=QUESTION, stream=True)))
        choices = [choice.model_extra or {} for chunk in chunks for choice in chunk.choices]
        lists = [len(c["steering"]["fork"]) for c in choices if "steering" in c]
        assert sum(lists) == TOKENS
        assert all(c.get("token_ids") for c in choices[:-1] if "steering" in c)
        assert carrying is None or len(lists) == carrying


def test_a_tool_call_and_a_format_are_kept_while_streamed(client: OpenAI) -> None:
    """Whole answers: tests/server/test_server.py."""
    schema = {"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}}, "required": ["name"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    body = asked(STEERING, 1, messages=QUESTION, stream=True, response_format=form, max_tokens=40)
    choice, reason = Choice(), None
    for chunk in client.chat.completions.create(**body):
        for part in chunk.choices:
            choice.text += part.delta.content or ""
            choice.tokens += len((part.model_extra or {}).get("token_ids") or [])
            choice.add_steering((part.model_extra or {}).get("steering"))
            reason = part.finish_reason or reason
    assert reason == "stop"
    assert choice.text.replace(" ", "").replace("\n", "") in ('{"name":"Ann"}', '{"name":"Bob"}')
    assert_steered(choice.steering, choice.tokens)

    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    choose = {"type": "function", "function": {"name": "get_weather"}}
    same = {"fork_temperature": 1.0, "telemetry": "tokens"}
    body = asked(same, 1, messages=QUESTION, tools=[tool], tool_choice=choose, max_tokens=60) | {"seed": 3}
    (call,) = client.chat.completions.create(**body).choices[0].message.tool_calls or []
    choice, name, arguments = Choice(), "", ""
    for chunk in client.chat.completions.create(**body, stream=True):
        for part in chunk.choices:
            choice.add_steering((part.model_extra or {}).get("steering"))
            for piece in part.delta.tool_calls or []:
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
    assert name == call.function.name == "get_weather"
    assert arguments == call.function.arguments
    assert len(choice.steering["entropy_nats"]) == choice.steering["tokens"] > 1


def test_scope_follows_the_requests_own_tokens(client: OpenAI) -> None:
    """Greedy, so that the tokens are known beforehand; two of them are declared to be the delimiters."""
    greedy = client.completions.create(
        **asked(None, 1, prompt="Once upon a time", max_tokens=24) | {"temperature": 0}
    ).choices[0]
    ids: list[int] = greedy.token_ids  # type: ignore[attr-defined]
    start, end = ids[4], ids[12]
    assert start != end
    inside, expected = False, []
    for token in ids:
        expected.append(inside)
        inside = token == start or (inside and token != end)
    zero = {"fork_temperature": 0, "other_temperature": 0, "select": "all", "telemetry": "tokens"}
    scope = {"scope": "thinking", "thinking_start_id": start, "thinking_end_id": end}
    body = asked(zero | scope, 1, prompt="Once upon a time", max_tokens=24)
    # Outside the block the request's own temperature holds: as cold as may be, which here draws the same tokens.
    steered = client.completions.create(**body | {"temperature": 0.01}).choices[0]
    assert steered.token_ids == ids  # type: ignore[attr-defined]
    assert steered.steering["fork"] == expected  # type: ignore[attr-defined]
    assert steered.steering["temperature"] == [0.0 if i else pytest.approx(0.01) for i in expected]  # type: ignore[attr-defined]
