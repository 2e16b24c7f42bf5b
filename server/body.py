"""A request body with `steering` in it -> the body vLLM understands, plus what to do with the answer.

Everything wrong with the steering is found here, before the engine hears of the request.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from steerdec.steering import encoding as rows
from steerdec.steering import params, scope
from steerdec.steering.params import Steering, SteeringError
from steerdec.telemetry.lanes import Lane, LanePool, LanesExhaustedError
from steerdec.vllm_plugin import request

from .keys import Keys

RESPONSES = "/v1/responses"
PATHS = frozenset({"/v1/chat/completions", "/v1/completions", RESPONSES})

NO_PENALTIES: Final = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

_T = TypeVar("_T")
_INTEGER: Final = TypeAdapter(int)
_FLOAT: Final = TypeAdapter(float)
_BOOLEAN: Final = TypeAdapter(bool)


@dataclass(frozen=True)
class Host:
    """What the checks must know of the server: filled in once the engine is up."""

    default: Steering | None
    threshold_nats: float
    default_temperature: float  # of requests that name none: the model's generation config, else 1
    delimiters: tuple[int | None, int | None]
    penalties: dict[str, float] | None  # defaults of those that are applied after steering; None where before
    pool: LanePool | None
    keys: Keys


@dataclass(frozen=True)
class Prepared:
    """A steered request: the body to pass on, and how to answer."""

    body: dict[str, Any]
    telemetry: str
    probed: bool  # a second entropy was asked for
    threshold_nats: float
    lanes: list[Lane]  # one a choice; empty with telemetry "none"
    pool: LanePool | None  # to give the lanes back to
    strip_token_ids: bool  # the client did not ask for them, we did


def may_be_steered(raw: bytes, host: Host) -> bool:
    """Whether a body needs looking at; False only if it surely names nothing of ours and there is no default."""
    return host.default is not None or names_steering(raw)


def names_steering(raw: bytes) -> bool:
    """False only if a body surely names nothing of ours.

    A key may be spelled with escapes ("steer\\u0069ng") or in UTF-16 or UTF-32, hence the other tests.
    """
    return b"steer" in raw or b"\\u" in raw or b"\0" in raw


def prepared(path: str, body: dict[str, Any], host: Host) -> Prepared | None:
    """The steered form of a parsed body, None where it asks for none.

    Raises:
        SteeringError: the steering is wrong, or does not go with the rest of the body.
        LanesExhaustedError: the request asks for telemetry itself, and every lane is in use.
    """
    xargs = body.get("vllm_xargs")
    if isinstance(xargs, dict):
        for key in request.RESERVED_ARGS:
            if key in xargs:
                raise SteeringError("", f"vllm_xargs.{key} is the server's own and cannot be sent")
        if xargs.get(request.STEERING_ARG) is not None:
            # vLLM checks it too, but a stream has begun by then.
            given = params.parse(xargs[request.STEERING_ARG])
            _check_sampling(body, given, host)
            if given.scope != "all":
                scope.checked_delimiters(given.thinking_start_id, given.thinking_end_id)
    if "steering" not in body:
        if host.default is None or (isinstance(xargs, dict) and request.STEERING_ARG in xargs):
            return None
        steering, own = host.default, False
    elif body["steering"] is None:
        del body["steering"]
        return None
    else:
        steering, own = params.parse(body.pop("steering")), True
        if isinstance(xargs, dict) and request.STEERING_ARG in xargs:
            raise SteeringError("", "is given twice: as `steering` and in vllm_xargs")
    try:
        return _prepared(path, body, steering, host)
    except (SteeringError, LanesExhaustedError) as e:
        if own:
            raise
        if isinstance(e, SteeringError) and e.field != "telemetry":
            return None  # a server-wide default steps back from requests it does not fit
        # Nobody asked for telemetry here, and the steering itself fits.
        return _prepared(path, body, steering.model_copy(update={"telemetry": "none"}), host)


def _prepared(path: str, body: dict[str, Any], steering: Steering, host: Host) -> Prepared:
    _check_sampling(body, steering, host)
    if steering.scope != "all":
        start_id = host.delimiters[0] if steering.thinking_start_id is None else steering.thinking_start_id
        end_id = host.delimiters[1] if steering.thinking_end_id is None else steering.thinking_end_id
        start_id, end_id = scope.checked_delimiters(start_id, end_id)
        steering = steering.model_copy(update={"thinking_start_id": start_id, "thinking_end_id": end_id})
    threshold = host.threshold_nats if steering.threshold_nats is None else steering.threshold_nats
    steering = steering.model_copy(update={"threshold_nats": threshold})

    xargs = body.get("vllm_xargs")
    if xargs is None:
        xargs = {}
    if not isinstance(xargs, dict):
        raise SteeringError("", "goes with vllm_xargs only where that is an object")
    xargs = {**xargs, request.STEERING_ARG: steering.model_dump_json(exclude_none=True)}
    lanes: list[Lane] = []
    if steering.telemetry != "none" and host.pool is not None:
        n = _sequences(path, body, host.pool)
        lanes = host.pool.lend(n)
        if n > 1 and _seed(body) is None:
            body["seed"] = secrets.randbits(53)  # vLLM tells the n sequences apart by their seeds alone
        xargs[request.LANES_ARG] = [word for lane in lanes for word in (lane.index, lane.generation)]
        xargs[request.BASE_SEED_ARG] = _seed(body) or 0
    body["vllm_xargs"] = xargs
    strip = False
    ids = body.get("return_token_ids")
    if lanes and path != RESPONSES and (ids is None or _read(_BOOLEAN, ids) is False):
        body["return_token_ids"] = strip = True  # how many tokens each choice (of each chunk) has
    return Prepared(
        body, steering.telemetry, steering.probe_temperature is not None, threshold, lanes, host.pool, strip
    )


def _check_sampling(body: dict[str, Any], steering: Steering, host: Host) -> None:
    """Refuse what could not be steered, where the values are of the right type (vLLM refuses the others)."""
    temperature, seed = _read(_FLOAT, body.get("temperature")), _seed(body)
    if body.get("temperature") is None:
        temperature = host.default_temperature
    if temperature is not None and temperature >= 0:
        rows.row_of(steering, temperature, seed, host.threshold_nats)
    for name, default in (host.penalties or {}).items():
        penalty = default if body.get(name) is None else _read(_FLOAT, body[name])
        if penalty is not None and penalty != NO_PENALTIES[name]:
            raise SteeringError("", request.PENALTIES_REFUSED)
    request.check_seeds(seed, _read(_INTEGER, body.get("n")) or 1)
    if _read(_BOOLEAN, body.get("use_beam_search")):
        raise SteeringError("", "does not go with use_beam_search, which does not sample")


def _sequences(path: str, body: dict[str, Any], pool: LanePool) -> int:
    """How many sequences the request generates, each of which needs a lane."""
    if path == RESPONSES and body.get("background"):
        raise SteeringError("telemetry", 'must be "none" with background, whose answer is fetched later')
    tools = body.get("tools")
    if (
        path == RESPONSES
        and isinstance(tools, list)
        and any(isinstance(tool, dict) and tool.get("type") != "function" for tool in tools)
    ):
        raise SteeringError(
            "telemetry", 'must be "none" with built-in tools: each of their turns is a request of its own'
        )
    if path == "/v1/completions" and sum(_prompts(body.get(name)) for name in ("prompt", "prompt_embeds")) > 1:
        raise SteeringError("telemetry", 'must be "none" with several prompts in one request; send them one by one')
    if path == "/v1/completions" and _read(_BOOLEAN, body.get("echo")):
        # Telemetry needs return_token_ids, with which vLLM leaves the prompt out of the text.
        raise SteeringError("telemetry", 'must be "none" with echo')
    n = _read(_INTEGER, body.get("n"))
    if n is None or n < 1:
        return 1  # the default, or vLLM's own check refuses it
    if n > (most := max(1, pool.count // 4)):
        raise SteeringError("telemetry", f'must be "none" with n = {n}; with telemetry n is at most {most}')
    return n


def _prompts(given: Any) -> int:
    """How many prompts a field of a completion holds."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return len(given)
    return int(given is not None)


def _seed(body: dict[str, Any]) -> int | None:
    seed = _read(_INTEGER, body.get("seed"))
    return None if seed == request.NO_SEED else seed


def _read(kind: TypeAdapter[_T], value: Any) -> _T | None:
    """`value` as vLLM's request models take it ("2" and 2.0 are 2 to them); None where they refuse it."""
    try:
        return None if value is None else kind.validate_python(value)
    except ValidationError:
        return None


def error_body(status: int, message: str, param: str | None) -> bytes:
    """An OpenAI error."""
    kind = {
        400: "BadRequestError",
        401: "AuthenticationError",
        413: "PayloadTooLargeError",
        429: "RateLimitError",
    }[status]
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()
