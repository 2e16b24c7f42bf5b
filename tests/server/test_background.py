"""Telemetry of background responses: on the real server, and where one is forgotten, refused, or cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from steerdec.server.background import RESPONSE_TOKENS, BackgroundResponses
from steerdec.steering.params import SteeringError
from steerdec.telemetry import lanes as telemetry
from steerdec.telemetry.lanes import ENTROPY, FLAG_BITS, TAG, LanePool
from steerdec.telemetry.loan import Loan
from tests.server.test_server import MODEL, STEERING, assert_steered, lanes_lent
from tests.support.serving import PATIENCE_S

BODY: dict[str, Any] = {
    **{"model": MODEL, "input": "Name three animals.", "max_output_tokens": 24},
    "extra_body": {"temperature": 0.8, "seed": 5, "steering": STEERING},
}
ENDED = ("completed", "incomplete", "failed", "cancelled")


@pytest.fixture(scope="module")
def client(server_url: str) -> OpenAI:
    return OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0)


def fetched(client: OpenAI, name: str) -> Any:
    """The response, once it has ended."""
    end = time.monotonic() + PATIENCE_S
    while (response := client.responses.retrieve(name)).status not in ENDED:
        assert not hasattr(response, "steering")
        assert time.monotonic() < end
        time.sleep(0.05)
    return response


@pytest.mark.engine
def test_a_response_fetched_later_has_the_telemetry_of_one_waited_for(client: OpenAI, server_url: str) -> None:
    waited_for: Any = client.responses.create(**BODY)
    assert_steered(waited_for.steering, waited_for.usage.output_tokens)
    queued = client.responses.create(**BODY, background=True)
    assert queued.status == "queued"
    assert not hasattr(queued, "steering")
    for _ in range(2):
        response = fetched(client, queued.id)
        assert response.output_text == waited_for.output_text
        assert response.steering == waited_for.steering
    assert lanes_lent(server_url) == 0


@pytest.mark.engine
def test_a_stream_of_a_background_response_closes_with_its_telemetry(client: OpenAI, server_url: str) -> None:
    whole: Any = client.responses.create(**BODY)
    events: list[Any] = list(client.responses.create(**BODY, background=True, stream=True))
    assert events[-1].response.steering == whole.steering
    assert not any(hasattr(e.response, "steering") for e in events[:-1] if hasattr(e, "response"))
    name = events[-1].response.id
    again: list[Any] = list(client.responses.retrieve(name, stream=True))
    assert again[-1].response.steering == whole.steering
    assert fetched(client, name).steering == whole.steering
    assert lanes_lent(server_url) == 0


@pytest.mark.engine
def test_a_client_that_leaves_a_stream_can_fetch_the_response(client: OpenAI, server_url: str) -> None:
    long = BODY | {"max_output_tokens": 96}
    with client.responses.create(**long, background=True, stream=True) as stream:
        name = next(e.response.id for e in stream if e.type == "response.created")
    response = fetched(client, name)
    assert_steered(response.steering, response.usage.output_tokens)
    assert lanes_lent(server_url) == 0


@pytest.mark.engine
def test_a_cancelled_response_has_no_telemetry_and_its_lane_rests(client: OpenAI, server_url: str) -> None:
    extra = BODY["extra_body"] | {"request_id": "resp_to_be_cancelled", "ignore_eos": True}
    body = BODY | {"max_output_tokens": 1500, "extra_body": extra}
    queued = client.responses.create(**body, background=True)
    assert queued.id == "resp_to_be_cancelled"
    assert lanes_lent(server_url) == 1
    taken = httpx.post(
        f"{server_url}/v1/responses",
        json={k: v for k, v in body.items() if k != "extra_body"} | extra | {"background": True},
        timeout=PATIENCE_S,
    )
    assert (taken.status_code, "is taken by a response" in taken.text) == (400, True)
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert not hasattr(fetched(client, queued.id), "steering")
    assert lanes_lent(server_url) == 0


@dataclass
class Usage:
    output_tokens: int


@dataclass
class Stored:
    usage: Usage | None


@dataclass
class Handler:
    """In place of vLLM's handler, whose responses end when the engine says so: these end at once, or when told."""

    background_tasks: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    response_store: dict[str, Any] = field(default_factory=dict)


TOKENS = 4


@pytest.fixture
def pool() -> Iterator[LanePool]:
    with telemetry.created(8, max_lanes=17) as file:
        yield LanePool(file)


def lent(pool: LanePool, entropy_nats: float = 1.0) -> Loan:
    loan = Loan(pool, 1, 0.672, probed=False)
    lane = loan.lanes[0]
    lane._words[:TOKENS, ENTROPY] = np.full(TOKENS, entropy_nats, np.float32).view(np.int32)
    lane._words[:TOKENS, TAG] = lane.generation << FLAG_BITS
    return loan


def answer(kept: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"status": "completed", "usage": {"output_tokens": TOKENS}}
    kept.whole(found)
    return found


def test_the_oldest_are_forgotten_when_all_hold_too_many_tokens(pool: LanePool) -> None:
    responses = BackgroundResponses(max_tokens=2 * (TOKENS + RESPONSE_TOKENS))
    for i in range(3):
        responses.begin(f"r{i}", lent(pool, i), "tokens")
        responses.follow(f"r{i}", Handler(response_store={f"r{i}": Stored(Usage(TOKENS))}))
    assert responses.get("r0") is None
    assert [answer(responses.get(f"r{i}"))["steering"]["entropy_nats"] for i in (1, 2)] == [[1.0] * 4, [2.0] * 4]
    assert pool.lent == 0
    again = responses.begin("r2", lent(pool, 7.0), "summary")  # the name is free once the response has ended
    responses.follow("r2", Handler(response_store={"r2": Stored(Usage(TOKENS))}))
    assert answer(again)["steering"]["mean_entropy_nats"] == 7.0
    assert responses.get("r1") is not None


def test_a_response_that_vllm_refuses_gives_its_lane_back(pool: LanePool) -> None:
    responses = BackgroundResponses()
    for handler in (Handler(), None):
        responses.begin("r", lent(pool), "tokens")
        responses.follow("r", handler)
        assert (pool.lent, pool.rest_s) == (0, 0.0)


def test_records_are_read_at_the_end_and_the_lane_rests_after_a_failure(pool: LanePool) -> None:
    async def generated(release: asyncio.Event) -> None:
        await release.wait()

    async def run() -> None:
        responses, handler, release = BackgroundResponses(), Handler(), asyncio.Event()
        for name, usage in (("good", Usage(TOKENS)), ("failed", None)):
            handler.background_tasks[name] = asyncio.create_task(generated(release))
            handler.response_store[name] = Stored(usage)
            responses.begin(name, lent(pool), "tokens")
            responses.follow(name, handler)
        assert pool.lent == 2
        with pytest.raises(SteeringError, match="'good' is taken"):
            responses.refuse_taken("good")
        release.set()
        await asyncio.gather(*handler.background_tasks.values())
        await asyncio.sleep(0)
        assert pool.lent == 0
        assert pool.rest_s > 0  # the failed one's
        assert answer(responses.get("good"))["steering"]["tokens"] == TOKENS

    asyncio.run(run())
