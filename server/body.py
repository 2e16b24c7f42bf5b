"""Turn a request body with `steering` into the body that vLLM understands, and plan its answer.

Steering is parsed, admitted and encoded here, once; vLLM and the worker get numbers. Anything invalid is refused before
the engine sees the request, and before a stream has begun.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from steerdec.policies import registry
from steerdec.steering import admission, encoding
from steerdec.steering.memory import Rule
from steerdec.steering.params import MIN_TEMPERATURE, Steering, SteeringError
from steerdec.telemetry.lanes import LanePool, LanesExhaustedError
from steerdec.telemetry.loan import Loan
from steerdec.vllm_plugin import request

from .echo import Echo
from .fields import CHAT, COMPLETIONS, RESPONSES, RETURN_TOKEN_IDS, read_by

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .middleware.keys import Keys

_T = TypeVar("_T")
_INTEGER: Final = TypeAdapter(int)
_FLOAT: Final = TypeAdapter(float)
_BOOLEAN: Final = TypeAdapter(bool)


@dataclass(frozen=True)
class Host:
    """What admission needs to know about the server; filled in once the engine is up."""

    default: Steering | None  # of requests without steering
    threshold_nats: float
    default_temperature: float  # of requests without one: the model's generation config, else 1
    default_penalties: Mapping[str, float]
    delimiters: tuple[int | None, int | None]
    engine: admission.Engine
    decode: Callable[[list[int]], str] | None  # token ids to text; None without a tokenizer
    pool: LanePool | None
    keys: Keys
    tracer: Tracer | None  # None where vLLM's tracing is off


@dataclass(frozen=True)
class Prepared:
    """A steered request: the body to pass on, and how to answer."""

    body: dict[str, Any]
    policy: str
    telemetry: str
    at_end: bool  # a stream has all of it in the chunk that ends a choice
    loan: Loan  # a lane per choice; none with telemetry "none"
    prompts: int  # each of them a request to the engine
    strip_token_ids: bool  # we requested them, not the client
    echo: Echo | None  # where vLLM leaves out the prompt because we requested token ids
    background: str | None = None  # the name of a response with telemetry that is fetched later


def may_be_steered(raw: bytes, host: Host) -> bool:
    """Return whether a body needs parsing: False only if it certainly has no field of ours and there is no default."""
    return host.default is not None or names_steering(raw)


def names_steering(raw: bytes) -> bool:
    r"""Return False only if a body certainly has no field of ours.

    A key may be spelled with escapes ("steer\u0069ng") or in UTF-16 or UTF-32, hence the other tests.
    """
    return b"steer" in raw or b"\\u" in raw or b"\0" in raw


def prepared(path: str, body: dict[str, Any], host: Host) -> Prepared | None:
    """Return the steered form of a parsed body, None if it is not to be steered.

    Raises:
        SteeringError: the steering is invalid, or incompatible with the rest of the body.
        LanesExhaustedError: the request itself asks for telemetry, and every lane is in use.
    """
    xargs = body.get("vllm_xargs")
    beside = None
    if isinstance(xargs, dict):
        admission.refuse_reserved(xargs, request.RESERVED_ARGS)
        beside = xargs.get(request.STEERING_ARG)
    if isinstance(xargs, dict) and beside is not None:
        admission.refuse_two_steerings(body.pop("steering", None) is not None)
        body["vllm_xargs"] = {name: value for name, value in xargs.items() if name != request.STEERING_ARG}
        return _prepared(path, body, registry.parse(beside).model_copy(update={"telemetry": "none"}), host)
    if "steering" in body:
        given = body.pop("steering")
        return None if given is None else _prepared(path, body, registry.parse(given), host)
    if host.default is None or (isinstance(xargs, dict) and request.STEERING_ARG in xargs):
        return None
    try:
        return _prepared(path, body, host.default, host)
    except (SteeringError, LanesExhaustedError) as e:
        if isinstance(e, SteeringError) and e.field != "telemetry":
            return None  # a server-wide default does not apply to requests that are incompatible with it
        # The request has not asked for telemetry, and the steering itself fits.
        quiet = host.default.model_copy(update={"telemetry": "none"})
        return _prepared(path, body, quiet, host)


def _prepared(path: str, body: dict[str, Any], steering: Steering, host: Host) -> Prepared:
    read = read_by(path, body)
    sampling = _sampling(read, host)
    # vLLM refuses an invalid temperature, and raises one that small to its minimum.
    temperature = max(sampling.temperature or host.default_temperature, MIN_TEMPERATURE)
    encoded = request.admitted(
        *(steering, sampling, temperature),
        engine=host.engine,
        threshold_nats=host.threshold_nats,
        delimiters=host.delimiters,
    )
    xargs = body.get("vllm_xargs")
    if xargs is None:
        xargs = {}
    if not isinstance(xargs, dict):
        raise SteeringError("", "goes with vllm_xargs only where that is an object")
    pool = host.pool if steering.telemetry != "none" else None
    prompts, n = (1, 0) if pool is None else _sequences(path, read, host, pool)
    threshold_nats = encoded.floats[encoding.THRESHOLD]
    rule = Rule.of(encoded.floats) if encoded.remembers else None
    loan = Loan(pool, prompts * n, threshold_nats, probed=steering.probe_temperature is not None, rule=rule)
    if prompts == 1 and n > 1 and _without_seed(body):
        body["seed"] = request.drawn_seed()  # with several prompts, each gets its own on its way to the engine
    xargs = {**xargs, **request.arguments(encoded, loan.lanes, _seed(body), prompts)}
    body["vllm_xargs"] = xargs
    strip, echo = False, None
    ids = body.get("return_token_ids")
    if loan.lanes and path in RETURN_TOKEN_IDS and (ids is None or _read(_BOOLEAN, ids) is False):
        body["return_token_ids"] = strip = True  # show how many tokens each choice (of each chunk) has
        if path == COMPLETIONS and _echoes(body) and host.decode is not None:
            echo = Echo(_texts(body), n, host.decode)
    background = _name(body) if loan.lanes and _in_background(path, read) else None
    policy, at_end = str(type(steering).model_fields["policy"].default), steering.stream_telemetry == "end"
    return Prepared(body, policy, steering.telemetry, at_end, loan, prompts, strip, echo, background)


def _sampling(body: dict[str, Any], host: Host) -> admission.Sampling:
    """Return how the request samples, from values of the right type (vLLM refuses the others)."""
    temperature = _read(_FLOAT, body.get("temperature"))
    if body.get("temperature") is None:
        temperature = host.default_temperature
    penalties = {
        name: _read(_FLOAT, body[name]) if body.get(name) is not None else default
        for name, default in host.default_penalties.items()
    }
    return admission.Sampling(
        temperature=None if temperature is None or temperature < 0 else temperature,
        seed=_seed(body),
        n=_read(_INTEGER, body.get("n")) or 1,
        penalties=any(value not in (None, admission.NO_PENALTIES[name]) for name, value in penalties.items()),
        thinking_token_budget=body.get("thinking_token_budget") is not None,
        beam_search=_read(_BOOLEAN, body.get("use_beam_search")) is True,
    )


def _sequences(path: str, body: dict[str, Any], host: Host, pool: LanePool) -> tuple[int, int]:
    """Return how many prompts the request has, and how many sequences each generates; each sequence needs a lane."""
    tools = body.get("tools")
    built_in = isinstance(tools, list) and any(isinstance(t, dict) and t.get("type") != "function" for t in tools)
    admission.refuse_built_in_tools(path == RESPONSES and built_in)
    prompts = 1
    if path == COMPLETIONS:
        prompts = max(1, sum(len(_prompts(body.get(name))) for name in ("prompt", "prompt_embeds")))
        truncated = body.get("truncate_prompt_tokens") is not None
        admission.refuse_unknown_echo(_echoes(body), truncated, host.decode is not None)
    n = _read(_INTEGER, body.get("n"))
    if n is None or n < 1:
        n = 1  # the default, or vLLM's own check refuses it
    hidden = path == CHAT and _read(_BOOLEAN, body.get("include_reasoning")) is False
    admission.refuse_uncounted_tokens(
        hidden and bool(body.get("stop")) and (n > 1 or _read(_BOOLEAN, body.get("stream")) is True)
    )
    admission.refuse_too_many_sequences(n, max(1, pool.count // 4), prompts)
    return prompts, n


def _in_background(path: str, body: dict[str, Any]) -> bool:
    return path == RESPONSES and _read(_BOOLEAN, body.get("background")) is True


def _name(body: dict[str, Any]) -> str:
    """Return the name of a response, which is in its answers: the client's, else one of ours, as vLLM's would be."""
    if not isinstance(body.get("request_id"), str):  # of another type, vLLM refuses it
        body.setdefault("request_id", f"resp_{secrets.token_hex(8)}")
    return str(body["request_id"])


def _prompts(given: Any) -> list[Any]:
    """Return the prompts that a field of a completion holds."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return given
    return [] if given is None else [given]


def _echoes(body: dict[str, Any]) -> bool:
    """Return whether a completion is to begin with its prompt."""
    return _read(_BOOLEAN, body.get("echo")) is True


def _texts(body: dict[str, Any]) -> list[str | None]:
    """Return the prompts of a completion, None for those of token ids. (vLLM does not echo embeddings.)"""
    return [prompt if isinstance(prompt, str) else None for prompt in _prompts(body.get("prompt"))]


def _seed(body: dict[str, Any]) -> int | None:
    seed = _read(_INTEGER, body.get("seed"))
    return None if seed == admission.NO_SEED else seed


def _without_seed(body: dict[str, Any]) -> bool:
    """Return whether the request has no seed. A seed of the wrong type counts as one, and vLLM refuses it."""
    return body.get("seed") is None or _read(_INTEGER, body["seed"]) == admission.NO_SEED


def _read(kind: TypeAdapter[_T], value: Any) -> _T | None:
    """Return `value` as vLLM's request models read it ("2" and 2.0 are 2 to them); None if they refuse it."""
    try:
        return None if value is None else kind.validate_python(value)
    except ValidationError:
        return None
