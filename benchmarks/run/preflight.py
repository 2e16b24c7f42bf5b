"""Check before the first sample that every endpoint is what it should be and does what the arms request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from steerdec.common.errors import SteerdecError
from steerdec.records.arms import Arm
from steerdec.records.run import ENGINE_KEYS

from ..design.plan import PlannedSample, SamplingPlan
from .answers import Answer, MalformedAnswerError, parse_answer
from .endpoints import Endpoint, EndpointError, RefusedError
from .sample_requests import Prompting, max_answer_bytes, requested_steering, sample_request

PROBE_TOKENS = 8
PROBE_TIMEOUT_S = 300.0  # the first request of a server may compile kernels


class PreflightError(SteerdecError):
    """An endpoint cannot serve this run."""


@dataclass(frozen=True)
class Server:
    """What an endpoint reports about itself."""

    model: str
    max_model_len: int | None
    model_info: dict[str, Any]
    steering: dict[str, Any]  # GET /v1/steering


async def survey(endpoints: Sequence[Endpoint]) -> Server:
    """Return what the endpoints report about themselves; they have to serve one model on one engine.

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


async def probe_arms(endpoints: Sequence[Endpoint], plan: SamplingPlan, prompting: Prompting) -> None:
    """Generate a few tokens of the first sample of every arm on every endpoint, and check how each was steered.

    Raises:
        PreflightError: a request fails, or an answer does not show the temperatures of its arm.
    """

    async def probe_all(endpoint: Endpoint) -> list[str | None]:
        slots = asyncio.Semaphore(endpoint.connections)

        async def probe(planned: PlannedSample) -> str | None:
            async with slots:
                return await _probe(endpoint, planned, prompting)

        return await asyncio.gather(*(probe(planned) for planned in islice(plan.items(), len(plan.arms))))

    for complaints in await asyncio.gather(*(probe_all(endpoint) for endpoint in endpoints)):
        for complaint in filter(None, complaints):
            raise PreflightError(complaint)


async def _probe(endpoint: Endpoint, planned: PlannedSample, prompting: Prompting) -> str | None:
    arm, steered = planned.arm, planned.arm.steering is not None
    path, body = sample_request(planned, prompting, max_tokens=PROBE_TOKENS, per_token=steered, token_text=steered)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            raw = await endpoint.post(path, body, max_bytes=max_answer_bytes(PROBE_TOKENS, per_token=steered))
        answer = parse_answer(raw, max_tokens=PROBE_TOKENS, steering=requested_steering(arm, per_token=steered))
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
