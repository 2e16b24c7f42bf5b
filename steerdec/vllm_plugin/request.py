"""One request's steering on its way through vLLM: admitted and encoded in the front end, unpacked in the worker.

vLLM calls `validate` in the front end, once for each time that it loaded the processor, and carries the result in
`SamplingParams.extra_args` to the worker. Requests from our own front ends (the HTTP server, `steerdec.offline`)
arrive encoded.
"""

from __future__ import annotations

import logging
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from steerdec.policies import registry
from steerdec.steering import admission, encoding
from steerdec.steering.encoding import EncodedRequest
from steerdec.steering.params import Steering, SteeringError
from steerdec.telemetry.lanes import Lane
from steerdec.vllm_plugin.memories import Identity
from steerdec.vllm_plugin.private.admission_stack import validated_prompt, validating_engine
from steerdec.vllm_plugin.settings import Settings

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

logger = logging.getLogger("vllm.steerdec")

# Keys of SamplingParams.extra_args (over HTTP: vllm_xargs). Only the first is for users.
STEERING_ARG: Final = "steering"
ENCODED_ARG: Final = "steerdec_request"  # [what it was made of, *EncodedRequest.packed()]; [] for "not steered"
LANES_ARG: Final = "steerdec_lanes"  # [lane, generation] of each of the n sequences, flat
BASE_SEED_ARG: Final = "steerdec_base_seed"
PROMPTS_ARG: Final = "steerdec_prompts"  # how many prompts, if more than one; the lanes are then those of all
IDENTITY_ARG: Final = "steerdec_identity"  # a number by which a worker knows a preempted request again
RESERVED_ARGS: Final = (ENCODED_ARG, LANES_ARG, BASE_SEED_ARG, PROMPTS_ARG, IDENTITY_ARG)
IDENTITY_BITS: Final = 62

BY_THE_SERVER: Final = 0  # in place of a checksum; a front end of ours


@dataclass(frozen=True)
class SteeredSequence:
    """The processor's state of one generated sequence."""

    floats: tuple[float, ...]
    ints: tuple[int, ...]
    scope: int
    delimiters: tuple[int, int]
    lane: tuple[int, int] | None  # index, generation
    identity: Identity | None  # by which its memory is found; None if it needs none


# In a front end of ours ---------------------------------------------------------------------------


def admitted(
    steering: Steering,
    sampling: admission.Sampling,
    temperature: float,
    *,
    engine: admission.Engine,
    threshold_nats: float,
    delimiters: tuple[int | None, int | None],
) -> EncodedRequest:
    """Admit a parsed steering, with the model's own delimiters where it leaves them out, and encode it.

    Args:
        steering: of one request.
        sampling: of that request.
        temperature: that the sampler will divide by (> 0).
        engine: that will run it.
        threshold_nats: where the steering names none.
        delimiters: the ids of the tokens around thinking; None if the model has no such token.

    Raises:
        SteeringError: it cannot be applied exactly; one line.
    """
    if steering.scope != "all":
        known = dict(zip(("thinking_start_id", "thinking_end_id"), delimiters, strict=True))
        missing = {name: token for name, token in known.items() if getattr(steering, name) is None}
        steering = steering.model_copy(update=missing)
    admission.admit(steering, sampling, engine)
    return encoding.encode(steering, temperature, threshold_nats)


def arguments(encoded: EncodedRequest, lanes: Sequence[Lane], seed: int | None, prompts: int = 1) -> dict[str, Any]:
    """Return the extra arguments that take an admitted request, with its lanes if it has any, to the worker.

    With several `prompts` the lanes are those of the first one's sequences, then those of the second one's, and so on.
    """
    extra: dict[str, Any] = {ENCODED_ARG: [BY_THE_SERVER, *encoded.packed()]}
    if not lanes:
        return extra
    return extra | lane_arguments(lanes, seed) | ({PROMPTS_ARG: prompts} if prompts > 1 else {})


def lane_arguments(lanes: Sequence[Lane], seed: int | None) -> dict[str, Any]:
    """Return the extra arguments that name the lane of each sequence of a request with this seed."""
    return {LANES_ARG: [word for lane in lanes for word in (lane.index, lane.generation)], BASE_SEED_ARG: seed or 0}


def drawn_seed() -> int:
    """Return a seed for a request of several sequences that has none: it is all that distinguishes them in vLLM."""
    return secrets.randbits(53)


# In vLLM's front end ------------------------------------------------------------------------------


def validate(sampling_params: SamplingParams) -> None:
    """Admit or refuse a request, and put the encoded request into its extra arguments.

    Raises:
        SteeringError: the steering is invalid or cannot be applied exactly; one line.
        ValueError: the engine's own settings are invalid.
    """
    _encode(sampling_params)
    extra: dict[str, Any] = sampling_params.extra_args or {}
    packed = extra.get(ENCODED_ARG)
    if packed and EncodedRequest.unpacked(packed[1:]).remembers:
        if packed[0] == BY_THE_SERVER and sampling_params.n > 1 and sampling_params.seed is None:
            sampling_params.seed = drawn_seed()
        # Drawn each time: the caller may use its parameters again, for other prompts.
        sampling_params.extra_args = {**extra, IDENTITY_ARG: secrets.randbits(IDENTITY_BITS)}


def _encode(sampling_params: SamplingParams) -> None:
    """Do `validate`, but for the identity of the request."""
    extra: dict[str, Any] = sampling_params.extra_args or {}
    if PROMPTS_ARG in extra:
        extra = sampling_params.extra_args = _of_one_prompt(sampling_params, extra)
    admission.refuse_foreign_lanes(
        extra.get(LANES_ARG),
        extra.get(BASE_SEED_ARG),
        sampling_params.seed,
        sampling_params.n,
        (LANES_ARG, BASE_SEED_ARG),
    )
    steering, packed = extra.get(STEERING_ARG), extra.get(ENCODED_ARG)
    if steering is None and packed and packed[:1] == [BY_THE_SERVER]:
        admission.refuse_foreign_numbers(packed, registry.KINDS, sampling_params.temperature, ENCODED_ARG)
        return
    engine = _Validating.now()
    if steering is None and engine.settings.default is None:
        if packed:
            raise SteeringError("", f"{ENCODED_ARG} is the server's own and cannot be sent")
        return
    made_of = engine.checksum(steering, sampling_params)
    if packed and packed[:1] == [made_of]:  # vLLM has loaded the processor twice, or the parameters are used again
        admission.refuse_foreign_numbers(packed, registry.KINDS, sampling_params.temperature, ENCODED_ARG)
        return
    encoded = engine.by_default(sampling_params) if steering is None else engine.admitted(steering, sampling_params)
    numbers = [] if encoded is None else [made_of, *encoded.packed()]
    # A new dict: the caller may reuse its own for requests with other temperatures.
    sampling_params.extra_args = {**extra, ENCODED_ARG: numbers}


def _of_one_prompt(sampling_params: SamplingParams, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the extra arguments with the lanes of the prompt that is being validated, out of those of all prompts.

    Sequences without a seed get one here: with one from the server, equal prompts would get equal texts.

    Raises:
        SteeringError: the lanes do not fit, or vLLM does not say which prompt this is.
    """
    lanes, prompts, words = extra.get(LANES_ARG, []), extra[PROMPTS_ARG], 2 * sampling_params.n
    admission.refuse_foreign_prompts(lanes, prompts, sampling_params.n, (LANES_ARG, PROMPTS_ARG))
    prompt = validated_prompt()
    admission.refuse_unnamed_prompt(prompt, prompts)
    if sampling_params.n > 1 and sampling_params.seed is None:
        sampling_params.seed = drawn_seed()
    others = {name: value for name, value in extra.items() if name != PROMPTS_ARG}
    first = prompt * words
    return others | {LANES_ARG: lanes[first : first + words], BASE_SEED_ARG: sampling_params.seed or 0}


@dataclass(frozen=True)
class _Validating:
    """The engine that is validating a request."""

    engine: admission.Engine
    settings: Settings
    threshold_nats: float

    @classmethod
    def now(cls) -> _Validating:
        """Return the engine whose front end is on the call stack; without one, the worker fills in its threshold."""
        config = validating_engine()
        if config is None:
            return cls(admission.Engine(), Settings(), encoding.ENGINES)
        settings = _settings(config)
        return cls(engine_of(config), settings, settings.threshold_nats)

    def admitted(self, steering: object, sampling_params: SamplingParams) -> EncodedRequest:
        parsed = registry.parse(steering)
        sampling = sampling_of(sampling_params)
        admission.admit(parsed, sampling, self.engine)
        admission.refuse_unseeded_sequences(parsed, sampling.seed, sampling.n)
        return encoding.encode(parsed, sampling_params.temperature, self.threshold_nats)

    def by_default(self, sampling_params: SamplingParams) -> EncodedRequest | None:
        """Encode the default; None for an incompatible request (a greedy one, a placebo without a seed)."""
        default = self.settings.default
        assert default is not None
        try:
            sampling = sampling_of(sampling_params)
            admission.admit_sampling(default, sampling)
            admission.refuse_unseeded_sequences(default, sampling.seed, sampling.n)
        except SteeringError:
            return None
        admission.admit_engine(default, self.engine)
        return encoding.encode(default, sampling_params.temperature, self.threshold_nats)

    def checksum(self, steering: object, sampling_params: SamplingParams) -> int:
        """Return a number, never BY_THE_SERVER, that stands for everything an encoded request is made of."""
        source = self.settings.default if steering is None else steering
        made_of = (source, sampling_of(sampling_params), self.engine, self.threshold_nats)
        return zlib.crc32(repr(made_of).encode()) | 1 << 32


def engine_of(config: VllmConfig) -> admission.Engine:
    """Return the properties of an engine's configuration that steering depends on."""
    v1, speculative = not config.use_v2_model_runner, config.speculative_config
    # Without a processor named on the command line, V1 with async scheduling hides the newest tokens.
    hides = v1 and config.scheduler_config.async_scheduling and not config.model_config.logits_processors
    return admission.Engine(
        v1=v1,
        speculative=speculative is not None,
        rejection_method=getattr(speculative, "rejection_sample_method", "standard"),
        sharded_sampling=bool(getattr(config.parallel_config, "enable_batch_sharded_sampling", False)),
        hides_newest_tokens=hides,
    )


def sampling_of(sampling_params: SamplingParams) -> admission.Sampling:
    """Return how a request samples, as far as steering depends on it."""
    return admission.Sampling(
        temperature=sampling_params.temperature,
        seed=sampling_params.seed,
        n=sampling_params.n,
        penalties=has_penalties(sampling_params),
        thinking_token_budget=getattr(sampling_params, "thinking_token_budget", None) is not None,
    )


def has_penalties(sampling_params: SamplingParams) -> bool:
    """Return whether any penalty is in effect."""
    return any(getattr(sampling_params, name) != none for name, none in admission.NO_PENALTIES.items())


_read: tuple[object, Settings] = (None, Settings())


def _settings(config: VllmConfig) -> Settings:
    """Return `Settings.of`, read once per configuration."""
    global _read
    source = getattr(config, "additional_config", None)
    if _read[0] is not source:
        _read = source, Settings.of(config)
    return _read[1]


# In the worker ------------------------------------------------------------------------------------


def unpacked(sampling_params: SamplingParams, settings: Settings) -> SteeredSequence | None:
    """Return how the worker steers a sequence, None if it does not. Nothing is parsed or validated."""
    extra: dict[str, Any] = sampling_params.extra_args or {}
    packed = extra.get(ENCODED_ARG)
    if not packed:
        if packed is None and (STEERING_ARG in extra or settings.default is not None):
            logger.error("A request reached the worker without vLLM's validate_params; it is left unsteered.")
        return None
    request = EncodedRequest.unpacked(packed[1:])
    floats = request.floats
    if floats[encoding.THRESHOLD] == encoding.ENGINES:
        floats = (settings.threshold_nats, *floats[1:])
    lane = None if settings.lanes is None else _lane(extra, sampling_params.seed)
    identity = (extra[IDENTITY_ARG], sampling_params.seed) if request.remembers else None
    return SteeredSequence(
        floats, request.ints(sampling_params.seed), request.scope, request.delimiters, lane, identity
    )


def _lane(extra: dict[str, Any], seed: int | None) -> tuple[int, int] | None:
    """Return the sequence's lane and generation.

    vLLM gives sequence i of a request the seed base + i, and nothing else to identify it by, so the server always sends
    a base seed when n > 1.
    """
    flat = extra.get(LANES_ARG)
    if not flat:
        return None
    i = 0 if len(flat) == 2 else (seed or 0) - int(extra[BASE_SEED_ARG])
    return int(flat[2 * i]), int(flat[2 * i + 1])
