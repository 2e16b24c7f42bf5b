"""Before the first sample: is every endpoint what it should be, and does it do what the arms ask?"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from steerdec.records.arms import Arm
from steerdec.records.run import ENGINE_KEYS

from ..design.plan import Item, Plan
from .answers import Answer, MalformedAnswerError, parse_answer
from .endpoints import Endpoint, EndpointError, RefusedError
from .sample_requests import asked_steering, max_answer_bytes, sample_request

# Of GET /v1/steering: endpoints must not differ in these, and a run does not go on where they changed.
PROBE_TOKENS = 8
PROBE_TIMEOUT_S = 300.0  # the first request of a server may compile kernels


class PreflightError(Exception):
    """An endpoint cannot serve this run; the message is one line."""


@dataclass(frozen=True)
class Server:
    """What an endpoint says of itself."""

    model: str
    max_model_len: int | None
    model_info: dict[str, Any]
    steering: dict[str, Any]  # GET /v1/steering


async def survey(endpoints: Sequence[Endpoint]) -> Server:
    """What the endpoints say of themselves; they have to serve one model on one engine.

    Raises:
        PreflightError: one does not answer, does not steer, or differs from the first.
    """
    servers = await asyncio.gather(*(_ask(endpoint) for endpoint in endpoints))
    first = servers[0]
    for endpoint, server in zip(endpoints, servers, strict=True):
        for what, here, there in (
            ("model", server.model, first.model),
            ("max_model_len", server.max_model_len, first.max_model_len),
            *((key, server.steering.get(key), first.steering.get(key)) for key in ENGINE_KEYS),
        ):
            if here != there:
                raise PreflightError(f"{endpoint.url} has {what} {here}, {endpoints[0].url} has {there}")
    return first


async def _ask(endpoint: Endpoint) -> Server:
    try:
        models = (await endpoint.get_json("/v1/models")).get("data")
        steering = await endpoint.get_json("/v1/steering")
    except RefusedError as e:
        if e.status == 404:
            raise PreflightError(f"{endpoint.url} does not steer ({e}); start it with `steerdec serve MODEL`") from None
        raise PreflightError(str(e)) from None
    except EndpointError as e:
        raise PreflightError(str(e)) from None
    entry = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
    model, longest = entry.get("id"), entry.get("max_model_len")
    if not isinstance(model, str):
        raise PreflightError(f"{endpoint.url}/v1/models lists no model")
    if steering.get("processor") is not True:
        raise PreflightError(f"{endpoint.url} does not steer: its engine did not load the processor (GET /v1/steering)")
    if steering.get("default") is not None:
        raise PreflightError(
            f"{endpoint.url} steers plain requests too (its default policy), so there would be no baseline; "
            "start it without --steering"
        )
    lanes = steering.get("telemetry_lanes")
    if type(lanes) is int and lanes > 0:  # more steered requests at once would be turned away
        endpoint.connections = min(endpoint.connections, lanes)
    info = {key: entry[key] for key in ("id", "root", "parent", "max_model_len") if key in entry}
    if str(info.get("root", "")).startswith("/"):  # a run is shared, the server's folders are nobody's business
        info["root"] = Path(info["root"]).name
    return Server(model, longest if type(longest) is int else None, info, steering)


async def probe_arms(
    endpoints: Sequence[Endpoint], plan: Plan, *, model: str, prompt: str, thinking: bool | None
) -> None:
    """Generate a few tokens of the first sample of every arm on every endpoint; was each steered as asked?

    Raises:
        PreflightError: a request fails, or an answer does not show the temperatures of its arm.
    """

    async def probe_all(endpoint: Endpoint) -> list[str | None]:
        slots = asyncio.Semaphore(endpoint.connections)

        async def probe(item: Item) -> str | None:
            async with slots:
                return await _probe(endpoint, item, model, prompt, thinking)

        return await asyncio.gather(*(probe(item) for item in islice(plan.items(), len(plan.arms))))

    for complaints in await asyncio.gather(*(probe_all(endpoint) for endpoint in endpoints)):
        for complaint in filter(None, complaints):
            raise PreflightError(complaint)


async def _probe(endpoint: Endpoint, item: Item, model: str, prompt: str, thinking: bool | None) -> str | None:
    arm, traced = item.arm, item.arm.steering is not None
    path, body = sample_request(
        item, model=model, prompt=prompt, thinking=thinking, max_tokens=PROBE_TOKENS, traced=traced
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(PROBE_TOKENS, traced))
        answer = parse_answer(raw, max_tokens=PROBE_TOKENS, steering=asked_steering(arm, traced))
    except TimeoutError:
        return f'{endpoint.url}, arm "{arm.name}": no answer within {PROBE_TIMEOUT_S:g} s'
    except EndpointError as e:
        return f'arm "{arm.name}": {e}'
    except MalformedAnswerError as e:
        return f'{endpoint.url}, arm "{arm.name}": {e}'
    if arm.steering is None:
        return None
    complaint = _wrong_temperature(answer, arm)
    return complaint and f'{endpoint.url}, arm "{arm.name}": {complaint}'


def _wrong_temperature(answer: Answer, arm: Arm) -> str | None:
    """What is wrong with the temperatures applied; only split names them in advance."""
    steering: dict[str, Any] = arm.steering or {}
    if steering.get("policy", "split") != "split" or steering.get("scope", "all") != "all":
        return None
    wanted = {
        True: float(steering.get("fork_temperature", arm.temperature)),
        False: float(steering.get("other_temperature", arm.temperature)),
    }
    for fork, temperature in zip(answer.fork or [], answer.temperature or [], strict=True):
        if temperature is None or not math.isclose(temperature, wanted[fork], rel_tol=1e-4, abs_tol=1e-6):
            return f"a {'fork' if fork else 'non-fork'} was sampled at {temperature}, asked was {wanted[fork]:g}"
    if steering.get("select") == "first":
        first = [i < steering["first_tokens"] for i in range(len(answer.fork or []))]
        if answer.fork != first:
            return f"not the first {steering['first_tokens']} tokens were steered as forks"
    return None
