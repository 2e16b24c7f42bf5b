"""Check before the first sample that every endpoint is what it should be and steers as the arms request."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from steerdec.common.errors import SteerdecError
from steerdec.common.progress import announce
from steerdec.policies.registry import parse
from steerdec.problems.prompts import request_body
from steerdec.problems.sets import Problem
from steerdec.records.arms import Arm
from steerdec.records.run import ENGINE_KEYS, SettingsError

from ..design.plan import PlannedSample, SamplingPlan
from .answers import Answer, MalformedAnswerError, parse_answer
from .endpoints import Endpoint, EndpointError, RefusedError
from .sample_requests import Prompting, max_answer_bytes, requested_steering, sample_request

PROBE_TOKENS = 8
MAX_TOKENS_BYTES = 1 << 24  # of a tokenized prompt
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


async def survey(endpoints: Sequence[Endpoint]) -> tuple[Server, list[Endpoint]]:
    """Return the reports of the endpoints and those that answer; print the ones that do not.

    Raises:
        PreflightError: none answers, or one does not steer, or they do not serve one model on one engine.
    """
    reports = await asyncio.gather(*(_report(endpoint) for endpoint in endpoints), return_exceptions=True)
    for report in reports:
        if isinstance(report, BaseException) and not isinstance(report, EndpointError):
            raise report
    alive = [(e, report) for e, report in zip(endpoints, reports, strict=True) if isinstance(report, Server)]
    if not alive:
        raise PreflightError("; ".join(str(report) for report in reports))
    for endpoint, report in zip(endpoints, reports, strict=True):
        if isinstance(report, EndpointError):
            announce(f"starting without {endpoint.url}, which cannot be reached: {report}")
    first = alive[0][1]
    for endpoint, server in alive:
        for what, here, there in (
            ("model", server.model, first.model),
            ("max_model_len", server.max_model_len, first.max_model_len),
            *((key, server.steering.get(key), first.steering.get(key)) for key in ENGINE_KEYS),
        ):
            if here != there:
                raise PreflightError(f"{endpoint.url} has {what} {here}, {alive[0][0].url} has {there}")
    return first, [endpoint for endpoint, _ in alive]


async def _report(endpoint: Endpoint) -> Server:
    """Query one endpoint. Raises EndpointError if it does not answer, PreflightError if it cannot serve a run."""
    models = (await _get(endpoint, "/v1/models", "is not an OpenAI API; expected http://HOST:PORT")).get("data")
    steering = await _get(endpoint, "/v1/steering", "does not steer; start it with `steerdec serve MODEL`")
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
    if str(info.get("root", "")).startswith("/"):  # a run may be shared, and the server's folders are private
        info["root"] = Path(info["root"]).name
    return Server(model, longest if type(longest) is int else None, info, steering)


async def _get(endpoint: Endpoint, path: str, where_missing: str) -> dict[str, Any]:
    try:
        return await endpoint.get_json(path)
    except RefusedError as e:
        if e.status == 404:
            raise PreflightError(f"{endpoint.url} {where_missing} (no {path})") from None
        raise PreflightError(str(e)) from None


async def check_prompt_lengths(
    endpoint: Endpoint,
    problems: Sequence[Problem],
    prompting: Prompting,
    *,
    context_tokens: int | None,
    max_tokens: int,
) -> None:
    """Check that every prompt and an answer of `max_tokens` fit the context; without /tokenize nothing is checked.

    Raises:
        SettingsError: one does not fit; the longest is named.
        EndpointError: the server does not answer.
    """
    if context_tokens is None:
        return
    slots = asyncio.Semaphore(endpoint.connections)

    async def length(problem: Problem) -> int | None:
        _, body = request_body(prompting.template, problem, thinking=prompting.thinking)
        body = {key: value for key, value in body.items() if key != "stop"} | {"model": prompting.model}
        try:
            async with slots:
                return len(json.loads(await endpoint.post("/tokenize", body, max_bytes=MAX_TOKENS_BYTES))["tokens"])
        except (RefusedError, ValueError, RecursionError, TypeError, KeyError):
            return None  # a proxy that passes /v1 only, say

    lengths = await asyncio.gather(*(length(problem) for problem in problems))
    longest, problem = max(
        ((n, problem) for n, problem in zip(lengths, problems, strict=True) if n is not None),
        key=lambda pair: pair[0],
        default=(0, None),
    )
    if problem is not None and longest + max_tokens > context_tokens:
        raise SettingsError(
            f"problem {problem.id}: its prompt has {longest} tokens, which with --max-tokens {max_tokens} does not fit "
            f"the server's context of {context_tokens} tokens; leave the problem out, or lower --max-tokens"
        )


async def probe_arms(endpoints: Sequence[Endpoint], plan: SamplingPlan, prompting: Prompting) -> None:
    """Generate a few tokens of the first sample of every arm on every endpoint, and check how each was steered.

    Raises:
        PreflightError: a request fails, or an answer does not show the temperatures of its arm.
    """
    roots = {arm.branch.roots for arm in plan.arms if arm.branch is not None}

    async def probe_all(endpoint: Endpoint) -> list[str | None]:
        slots = asyncio.Semaphore(endpoint.connections)

        async def probe(planned: PlannedSample) -> str | None:
            async with slots:
                return await _probe(endpoint, planned, prompting, token_ids=planned.arm.name in roots)

        return await asyncio.gather(*(probe(planned) for planned in islice(plan.items(), len(plan.arms))))

    for complaints in await asyncio.gather(*(probe_all(endpoint) for endpoint in endpoints)):
        for complaint in filter(None, complaints):
            raise PreflightError(complaint)


async def _probe(
    endpoint: Endpoint, planned: PlannedSample, prompting: Prompting, *, token_ids: bool = False
) -> str | None:
    arm, steered = planned.arm, planned.arm.steering is not None
    path, body = sample_request(
        planned, prompting, max_tokens=PROBE_TOKENS, per_token=steered, token_text=steered, token_ids=token_ids
    )
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
    if token_ids and answer.token_ids is None:
        return f'{endpoint.url}, arm "{arm.name}": no token_ids (return_token_ids), which branching needs'
    if arm.steering is None:
        return None
    complaint = _wrong_temperature(answer, arm)
    return complaint and f'{endpoint.url}, arm "{arm.name}": {complaint}'


def _wrong_temperature(answer: Answer, arm: Arm) -> str | None:
    """Return what is wrong with the applied temperatures, if the policy fixes them in advance."""
    steering: dict[str, Any] = arm.steering or {}
    if steering.get("scope", "all") != "all":
        return None
    applied, guarded = arm.applied(), answer.guard_token
    for i, (fork, temperature) in enumerate(zip(answer.fork or [], answer.temperature or [], strict=True)):
        if guarded is not None and i >= guarded:
            if fork or temperature is None or not _same(temperature, arm.temperature):
                return f"token {i} was steered, though the guard had stopped at token {guarded}"
            continue
        expected = applied.fork if fork else applied.other
        if temperature is None and fork and not parse(steering).reports_fork_temperature:
            continue
        if temperature is None:
            return f"no temperature was reported for a {'fork' if fork else 'non-fork'}"
        if expected is not None and not _same(temperature, expected):
            return f"a {'fork' if fork else 'non-fork'} was sampled at {temperature}, requested was {expected:g}"
    if steering.get("select") == "first":
        most = steering["first_tokens"] if guarded is None else min(steering["first_tokens"], guarded)
        first = [i < most for i in range(len(answer.fork or []))]
        if answer.fork != first:
            return f"the tokens steered as forks were not the first {steering['first_tokens']}"
    return None


def _same(temperature: float, expected: object) -> bool:
    return isinstance(expected, int | float) and math.isclose(temperature, expected, rel_tol=1e-4, abs_tol=1e-6)
