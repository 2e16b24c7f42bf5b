"""What an offline front end does with a request before vLLM gets it: admit, encode, and lend lanes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams

from steerdec.common.errors import InvalidInputError
from steerdec.policies import registry
from steerdec.steering import admission, encoding, scope
from steerdec.steering.encoding import EncodedRequest
from steerdec.steering.memory import Rule
from steerdec.steering.params import Steering, SteeringError
from steerdec.telemetry.lanes import LanePool
from steerdec.telemetry.loan import Loan
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

GivenSteering = Steering | dict[str, Any] | str | None  # as an object, a dict, or JSON text; None: not steered


@dataclass(frozen=True)
class Admitted:
    """A steered request that has no lanes yet."""

    params: SamplingParams
    encoded: EncodedRequest
    lanes: int
    probed: bool


@dataclass(frozen=True)
class FrontEnd:
    """What admission needs to know about the engine, and the lanes."""

    settings: Settings
    engine: admission.Engine
    delimiters: tuple[int | None, int | None]
    pool: LanePool
    tokenizer: Any = None  # of outputs that show their tokens

    @classmethod
    def of(cls, config: VllmConfig, tokenizer: Any) -> FrontEnd:
        """Return the front end of an engine that was started with lanes.

        Raises:
            InvalidInputError: it was started without.
        """
        settings = Settings.of(config)
        if settings.lanes is None:
            raise InvalidInputError("the engine has no telemetry lanes: start it as SteeredLLM or SteeredAsyncLLM does")
        return cls(settings, request.engine_of(config), delimiters(tokenizer), LanePool(settings.lanes.file), tokenizer)

    def admitted(self, params: Any) -> Admitted | None:
        """Return a request that is to be steered, None if it is not, or has lanes already.

        Raises:
            SteeringError: its steering cannot be applied, or needs more lanes than there are; one line.
        """
        if not isinstance(params, SamplingParams):
            return None
        extra = params.extra_args or {}
        if any(name in extra for name in request.RESERVED_ARGS):
            return None
        given = extra.get(request.STEERING_ARG)
        if given is not None:
            return self._admitted(registry.parse(given), params)
        if self.settings.default is None:
            return None
        try:
            return self._admitted(self.settings.default, params)
        except SteeringError:
            return None  # a default does not apply to requests that are incompatible with it

    def _admitted(self, steering: Steering, params: SamplingParams) -> Admitted:
        encoded = request.admitted(
            *(steering, request.sampling_of(params), params.temperature),
            engine=self.engine,
            threshold_nats=self.settings.threshold_nats,
            delimiters=self.delimiters,
        )
        lanes = 0
        if steering.telemetry != "none":
            admission.refuse_too_many_sequences(params.n, self.pool.count)
            lanes = params.n
        return Admitted(params, encoded, lanes, steering.probe_temperature is not None)

    def lent(self, admitted: Admitted) -> tuple[SamplingParams, Loan]:
        """Return the parameters that vLLM is to get, and the request's loan.

        Raises:
            LanesExhaustedError: too few lanes are free now.
        """
        threshold_nats = admitted.encoded.floats[encoding.THRESHOLD]
        rule = Rule.of(admitted.encoded.floats) if admitted.encoded.remembers else None
        loan = Loan(self.pool, admitted.lanes, threshold_nats, probed=admitted.probed, rule=rule)
        params = copy(admitted.params)
        if admitted.lanes > 1 and params.seed is None:
            params.seed = request.drawn_seed()
        extra = {name: value for name, value in (params.extra_args or {}).items() if name != request.STEERING_ARG}
        params.extra_args = extra | request.arguments(admitted.encoded, loan.lanes, params.seed)
        return params, loan


def delimiters(tokenizer: Any) -> tuple[int | None, int | None]:
    """Return the ids of the tokens around thinking; None where there is no such token, or no tokenizer."""
    return (None, None) if tokenizer is None else scope.delimiters(tokenizer)


def with_steering(
    params: SamplingParams | Sequence[SamplingParams], steering: GivenSteering | list[GivenSteering]
) -> SamplingParams | list[SamplingParams]:
    """Return parameters that have the steering among their extra arguments; one for all prompts, or one per prompt.

    Raises:
        SteeringError: a steering is invalid, or stands beside another one.
        InvalidInputError: there are two lists, of different lengths.
    """
    if not isinstance(steering, list):
        return [_with_one(one, steering) for one in params] if _is_list(params) else _with_one(params, steering)
    each = params if _is_list(params) else [params] * len(steering)
    if len(each) != len(steering):
        raise InvalidInputError(f"steering: {len(steering)} objects are given for {len(each)} sampling parameters")
    return [_with_one(one, steered) for one, steered in zip(each, steering, strict=True)]


def _with_one(params: SamplingParams, steering: GivenSteering) -> SamplingParams:
    if steering is None:
        return params
    if (params.extra_args or {}).get(request.STEERING_ARG) is not None:
        raise SteeringError("", "is given twice: as `steering` and in extra_args")
    params = copy(params)
    params.extra_args = {**(params.extra_args or {}), request.STEERING_ARG: registry.parse(steering)}
    return params


def _is_list(params: SamplingParams | Sequence[SamplingParams]) -> bool:
    return isinstance(params, Sequence)
