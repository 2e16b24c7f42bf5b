"""One request's steering as the numbers a kernel reads: a row of two small tables.

Every backend (reference, CPU, Triton) takes the same tables, so that none of them has
to know what a policy is called or where its defaults come from.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from steerdec.steering.params import DynaTemp, Edt, EntropyTarget, Split, Steering, SteeringError

# Columns of the float table, float32 [slots, FLOATS].
THRESHOLD: Final = 0  # nats
REQUEST_T: Final = 1
FORK_T: Final = 2  # split only
OTHER_T: Final = 3  # every policy; the request's own temperature except under split
FORK_FACTOR: Final = 4  # REQUEST_T / FORK_T, rounded once from float64; 0 when FORK_T is 0
OTHER_FACTOR: Final = 5
PARAM_A: Final = 6  # entropy_target: delta_nats; dynatemp: min temperature; edt: theta
PARAM_B: Final = 7  # entropy_target: min temperature; dynatemp: max temperature; edt: base
PARAM_C: Final = 8  # entropy_target: max temperature; dynatemp: exponent
PROBE_T: Final = 9  # where a second entropy is measured: a temperature, APPLIED, or NaN for nowhere
FLOATS: Final = 10

APPLIED: Final = 0.0  # in PROBE_T: at T', whatever it turns out to be

# Columns of the integer table, int32 [slots, INTS].
KIND: Final = 0
SELECT: Final = 1
KEY: Final = 2  # of the placebo's hash, as the bits of a uint32
CUTOFF: Final = 3  # a token is selected where the hash's top 24 bits, or its position itself, are below this
INTS: Final = 4

SPLIT, ENTROPY_TARGET, DYNATEMP, EDT = 0, 1, 2, 3
BY_ENTROPY, BY_HASH, ALWAYS, BY_POSITION = 0, 1, 2, 3
_SELECTORS: Final = {"entropy": BY_ENTROPY, "random": BY_HASH, "all": ALWAYS, "first": BY_POSITION}


@dataclass(frozen=True)
class Row:
    """The two table rows of one request: `floats` has FLOATS entries, `ints` INTS."""

    floats: tuple[float, ...]
    ints: tuple[int, ...]


def row_of(steering: Steering, temperature: float, seed: int | None, default_threshold_nats: float) -> Row:
    """The table rows for a request sampled at `temperature` (> 0) with `seed`.

    Raises:
        SteeringError: `temperature` is 0, or the placebo selector has no seed to hash.
    """
    if not temperature > 0.0:
        raise SteeringError("", "needs a sampled request, but its temperature is 0 (greedy)")
    if steering.select == "random" and seed is None:
        raise SteeringError("select", '"random" needs the request to have a seed, so that it repeats')
    threshold = default_threshold_nats if steering.threshold_nats is None else steering.threshold_nats
    fork_t = other_t = temperature
    a = b = c = 0.0
    match steering:
        case Split():
            kind = SPLIT
            fork_t = temperature if steering.fork_temperature is None else steering.fork_temperature
            other_t = temperature if steering.other_temperature is None else steering.other_temperature
        case EntropyTarget():
            kind = ENTROPY_TARGET
            a, b, c = steering.delta_nats, steering.min_temperature, steering.max_temperature
        case DynaTemp():
            kind = DYNATEMP
            a, b, c = steering.min_temperature, steering.max_temperature, steering.exponent
        case Edt():
            kind = EDT
            a, b = steering.theta, steering.base
    match steering.probe_temperature:
        case None:
            probe_t = math.nan
        case "applied":
            probe_t = APPLIED
        case number:
            probe_t = number
    floats = (threshold, temperature, fork_t, other_t, _factor(temperature, fork_t), _factor(temperature, other_t))
    cutoff = steering.first_tokens or round((steering.fork_rate or 0.0) * 2**24)
    ints = (kind, _SELECTORS[steering.select], placebo_key(seed or 0), cutoff)
    return Row((*floats, a, b, c, probe_t), ints)


def _factor(request_t: float, steered_t: float) -> float:
    return 0.0 if steered_t == 0.0 else request_t / steered_t


def placebo_key(seed: int) -> int:
    """32 bits, as a signed int32, that decide with the position which tokens `select: "random"` takes."""
    digest = hashlib.blake2b(f"steerdec placebo {seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)
