"""Anthropic's API on the real server, through its official client."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError

from tests.server.test_server import MODEL, QUESTION, STEERING, assert_steered, lanes_lent

pytestmark = pytest.mark.engine

BODY: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 16}
GREEDY = {"fork_temperature": 0, "other_temperature": 0, "threshold_nats": 0.6, "telemetry": "tokens"}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather in a city", "input_schema": SCHEMA}


@pytest.fixture(scope="module")
def client(server_url: str) -> Anthropic:
    return Anthropic(base_url=server_url, api_key="none", max_retries=0)


def asked(steering: dict[str, Any] | None, temperature: float = 1.0, **more: Any) -> dict[str, Any]:
    """The client's arguments. Of a temperature it knows nothing, and a seed is ignored by vLLM."""
    extra = {"temperature": temperature, "seed": 1} | ({} if steering is None else {"steering": steering})
    return BODY | {"extra_body": extra} | more


def streamed(client: Anthropic, **body: Any) -> tuple[str, Any]:
    """The text, and the event that closes it."""
    text, closing = "", []
    for event in client.messages.create(**body, stream=True):
        assert event.type == "message_delta" or not hasattr(event, "steering")
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        if event.type == "message_delta":
            closing.append(event)
    (delta,) = closing
    return text, delta


@pytest.mark.parametrize("more", [{}, {"stop_sequences": [" a", "e"]}], ids=["", "stop"])
def test_a_message_has_telemetry_of_its_tokens_whole_and_streamed(client: Anthropic, more: dict[str, Any]) -> None:
    message = client.messages.create(**asked(STEERING, **more))
    assert_steered(message.steering, message.usage.output_tokens)  # type: ignore[attr-defined]
    _, delta = streamed(client, **asked(STEERING, **more))
    assert_steered(delta.steering, delta.usage.output_tokens)


def test_steered_to_temperature_0_a_message_is_the_greedy_one(client: Anthropic) -> None:
    """This path has no seed, so the test uses steering that leaves one possible text."""
    (plain,) = client.messages.create(**asked(None, temperature=0)).content
    whole = client.messages.create(**asked(GREEDY))
    text, delta = streamed(client, **asked(GREEDY))
    assert whole.content[0].text == text == plain.text  # type: ignore[union-attr]
    assert set(delta.steering["temperature"]) == {0}
    assert delta.steering["entropy_nats"] == pytest.approx(whole.steering["entropy_nats"], abs=1e-3)  # type: ignore[attr-defined]


def test_without_steering_a_message_has_nothing_of_ours(client: Anthropic) -> None:
    plain = client.messages.create(**asked(None))
    steered = client.messages.create(**asked(STEERING))
    assert steered.model_dump().keys() - plain.model_dump().keys() == {"steering"}
    _, delta = streamed(client, **asked(None))
    assert not hasattr(delta, "steering")


def test_a_tool_call_and_a_format_have_telemetry_too(client: Anthropic) -> None:
    """The call is streamed: vLLM does not hold its arguments to the schema, and refuses a whole answer with others."""
    choose = {"type": "tool", "name": "weather"}
    body = asked(GREEDY, max_tokens=40, tools=[WEATHER], tool_choice=choose)
    events = list(client.messages.create(**body, stream=True))
    assert [e.content_block.type for e in events if e.type == "content_block_start"] == ["tool_use"]
    (delta,) = [e for e in events if e.type == "message_delta"]
    assert len(delta.steering["entropy_nats"]) == delta.usage.output_tokens > 1  # type: ignore[attr-defined]

    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = client.messages.create(**asked(STEERING, output_config=form))
    assert message.content[0].text.lstrip().startswith("{")  # type: ignore[union-attr]
    assert_steered(message.steering, message.usage.output_tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "steering", "words"),
    [
        ({}, {"forks": 1}, "steering.forks"),
        ({"temperature": 0}, {}, "temperature is 0"),
        ({"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, {}, "thinking.budget_tokens"),
        ({}, {"select": "random", "fork_rate": 0.2}, "seed"),
    ],
)
def test_what_cannot_be_steered_is_an_error_of_the_clients_own(
    client: Anthropic, server_url: str, more: dict[str, Any], steering: dict[str, Any], words: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError, match=words) as refused:
        client.messages.create(**asked(steering, **more), stream=stream)
    body: Any = refused.value.body
    assert body["type"] == "error"
    assert lanes_lent(server_url) == 0
