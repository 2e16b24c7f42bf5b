"""One request's steering as vLLM hands it over: read from its `SamplingParams`, checked against its engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from steerdec.steering import params, scope
from steerdec.steering.encoding import Row, row_of
from steerdec.steering.params import PAPER_THRESHOLD_NATS, Steering, SteeringError
from steerdec.telemetry.lanes import LaneFile

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

# Keys of SamplingParams.extra_args (over HTTP: vllm_xargs). Only the first is for users.
STEERING_ARG = "steering"
LANES_ARG = "steerdec_lanes"  # [lane, generation] of each of the n sequences, flat
BASE_SEED_ARG = "steerdec_base_seed"
RESERVED_ARGS = (LANES_ARG, BASE_SEED_ARG)

PENALTIES_REFUSED = (
    "does not go with presence, frequency or repetition penalties on vLLM's V1 model runner, "
    "which applies them after steering; use the V2 runner or drop them"
)

NO_SEED = -1  # vLLM takes a seed of -1 for none

CONFIG_KEY = "steerdec"  # of vLLM's --additional-config


@dataclass(frozen=True)
class EngineSettings:
    """What the launcher told the engine, under `CONFIG_KEY` of vLLM's additional config."""

    threshold_nats: float = PAPER_THRESHOLD_NATS
    default: Steering | None = None  # for requests that bring no steering of their own
    lanes: LaneFile | None = None

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> EngineSettings:
        """Raises ValueError when the entry holds what is not known, so that the engine does not start."""
        config = getattr(vllm_config, "additional_config", None)
        given = config.get(CONFIG_KEY, {}) if isinstance(config, Mapping) else {}
        unknown = set(given) - {"threshold_nats", "default", "lanes", "server"}  # "server" is for the HTTP side
        if unknown:
            raise ValueError(f"additional-config {CONFIG_KEY}: {', '.join(sorted(unknown))} is not known")
        default, lanes, threshold_nats = given.get("default"), given.get("lanes"), given.get("threshold_nats")
        try:
            threshold_nats = params.parse({"threshold_nats": threshold_nats}).threshold_nats
            default = None if default is None else params.parse(default)
        except SteeringError as e:
            raise ValueError(f"additional-config {CONFIG_KEY}: {e}") from None
        return cls(
            threshold_nats=PAPER_THRESHOLD_NATS if threshold_nats is None else threshold_nats,
            default=default,
            lanes=None if lanes is None else LaneFile(**lanes),
        )


@dataclass(frozen=True)
class Request:
    """What the processor keeps of one steered request."""

    row: Row
    scope: int
    delimiters: tuple[int, int]  # (-1, -1) unless scope is not ALL
    lane: tuple[int, int] | None  # index, generation


def asked(sampling_params: SamplingParams) -> Steering | None:
    """The steering in a request's extra arguments, None if it has none.

    Raises:
        SteeringError: it is there and wrong.
    """
    value = (sampling_params.extra_args or {}).get(STEERING_ARG)
    return None if value is None else params.parse(value)


def validate(sampling_params: SamplingParams) -> None:
    """Refuse a request whose steering cannot be done exactly, before it reaches the engine.

    Raises:
        SteeringError: in one plain line.
        ValueError: the engine's own entry of the additional config is wrong.
    """
    _refuse_broken_lanes(sampling_params)
    config = _validating_engine()
    on_v1 = config is not None and not config.use_v2_model_runner
    steering = asked(sampling_params)
    if steering is None:
        # A default that steps back from this request needs nothing of the engine; one that does not, does.
        settings = EngineSettings.of(config) if on_v1 else None
        if settings and settings.default and steered(sampling_params, settings):
            _refuse_what_v1_cannot_do(settings.default, config)
        return
    check_seeds(sampling_params.seed, sampling_params.n)
    row_of(steering, sampling_params.temperature, sampling_params.seed, PAPER_THRESHOLD_NATS)
    if steering.scope != "all":
        scope.checked_delimiters(steering.thinking_start_id, steering.thinking_end_id)
    if on_v1:
        _refuse_what_v1_cannot_do(steering, config)
        if has_penalties(sampling_params):
            raise SteeringError("", PENALTIES_REFUSED)


def check_seeds(seed: int | None, n: int) -> None:
    """Refuse n sequences one of which would have no seed: vLLM gives sequence i the seed + i, and -1 means none to it.

    Raises:
        SteeringError: in one plain line.
    """
    if n > 1 and seed is not None and seed <= NO_SEED < seed + n:
        raise SteeringError(
            "", f"does not go with n = {n} and seed {seed}: one sequence would get seed -1, none to vLLM"
        )


def _refuse_broken_lanes(sampling_params: SamplingParams) -> None:
    """What a worker reads unchecked, and dies of, must be as the server makes it, whoever sent it."""
    extra: dict[str, Any] = sampling_params.extra_args or {}
    flat, base = extra.get(LANES_ARG), extra.get(BASE_SEED_ARG)
    if flat is None and base is None:
        return
    n = sampling_params.n
    words = flat if isinstance(flat, list) else []
    fits = len(words) == 2 * n and all(type(word) is int and 0 <= word < 2**30 for word in words)
    if not fits or (n > 1 and (type(base) is not int or base != sampling_params.seed)):
        raise SteeringError("", f"{LANES_ARG} and {BASE_SEED_ARG} are the server's own and cannot be sent")


def _refuse_what_v1_cannot_do(steering: Steering, config: VllmConfig) -> None:
    if config.speculative_config is not None:
        raise SteeringError(
            "", "vLLM's V1 model runner drops logits processors under speculative decoding; use the V2 runner"
        )
    # Without a processor named on the command line, V1 with async scheduling hides the newest tokens.
    if steering.scope == "all" or not config.scheduler_config.async_scheduling:
        return
    if not config.model_config.logits_processors:
        raise SteeringError(
            "scope",
            f'"{steering.scope}" needs the engine to be started with '
            "--logits-processors steerdec.processor:EntropySteering (or --no-async-scheduling)",
        )


def has_penalties(sampling_params: SamplingParams) -> bool:
    return bool(
        sampling_params.presence_penalty
        or sampling_params.frequency_penalty
        or sampling_params.repetition_penalty != 1.0
    )


def _validating_engine() -> VllmConfig | None:
    """The configuration of the engine front end that is validating a request now, None if there is none.

    vLLM calls `validate_params` with the parameters alone, though what is exact depends on the runner,
    on speculative decoding and on scheduling. Refusing later, in the worker, would kill the engine for
    everyone; steering silently less than was asked is worse. So this looks up the stack for vLLM's
    InputProcessor, which holds the configuration (a contract test pins that it is there).
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if type(owner).__name__ == "InputProcessor" and hasattr(owner, "vllm_config"):
            return owner.vllm_config
        frame = frame.f_back
    return None


def steered(sampling_params: SamplingParams, settings: EngineSettings) -> Request | None:
    """How the worker steers a request, None if it leaves it alone.

    What `validate` let through is never an error here; a server-wide default steps back from requests
    it does not fit (greedy ones, placebos without a seed).
    """
    own = asked(sampling_params)
    steering = own or settings.default
    if steering is None:
        return None
    try:
        row = row_of(steering, sampling_params.temperature, sampling_params.seed, settings.threshold_nats)
        delimiters = (-1, -1)
        if steering.scope != "all":
            delimiters = scope.checked_delimiters(steering.thinking_start_id, steering.thinking_end_id)
    except SteeringError:
        if own is not None:
            raise
        return None
    lane = None if settings.lanes is None else _lane(sampling_params)
    return Request(row, scope.CODES[steering.scope], delimiters, lane)


def _lane(sampling_params: SamplingParams) -> tuple[int, int] | None:
    """The sequence's lane and generation. vLLM gives sequence i of a request the seed base + i, and
    nothing else to tell it by, so the server always sends a base seed when n > 1."""
    extra: dict[str, Any] = sampling_params.extra_args or {}
    flat = extra.get(LANES_ARG)
    if not flat:
        return None
    i = 0 if len(flat) == 2 else (sampling_params.seed or 0) - int(extra[BASE_SEED_ARG])
    return int(flat[2 * i]), int(flat[2 * i + 1])
