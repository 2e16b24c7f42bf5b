"""The encoded request: steering as the numbers that a worker reads.

The front end encodes a request once it is admitted; the worker unpacks the numbers without parsing or validating
anything. Every backend (reference, CPU, Triton) reads the same two tables, with a row per request, so no backend
depends on the names of fields or their defaults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from steerdec.steering.params import DEFAULT_GUARD_WINDOW_TOKENS, DEFAULT_QUANTILE, Steering

# Columns of the float table, float32 [slots, FLOATS].
THRESHOLD: Final = 0  # nats; in an encoded request ENGINES where the worker's own applies
REQUEST_T: Final = 1
OTHER_T: Final = 2  # at tokens that are not forks
OTHER_FACTOR: Final = 3  # REQUEST_T / OTHER_T, rounded once from float64; 0 where OTHER_T is 0
PROBE_T: Final = 4  # where a second entropy is measured: a temperature, APPLIED or NOWHERE
QUANTILE: Final = 5  # that a moving threshold follows, NO_QUANTILE where it does not move (`steering.memory`)
LOWER_SHARE: Final = 6  # of the threshold, at which a run of forks ends; 1 without hysteresis
GUARD_NATS: Final = 7  # cap of the running mean of H, NO_GUARD without
GUARD_TOKENS: Final = 8  # that the running mean is over
FIRST_PARAMETER: Final = 9  # the policy's own, defined by its fields.py
PARAMETERS: Final = 5
FLOATS: Final = FIRST_PARAMETER + PARAMETERS

ENGINES: Final = -1.0  # in THRESHOLD
APPLIED: Final = 0.0  # in PROBE_T: at T'
NOWHERE: Final = -1.0  # in PROBE_T: no second entropy
NO_QUANTILE: Final = 0.0
NO_GUARD: Final = -1.0

# Columns of the integer table, int32 [slots, INTS].
KIND: Final = 0  # of the policy
SELECT: Final = 1
KEY: Final = 2  # of the placebo's hash, as the bits of a uint32
CUTOFF: Final = 3  # a token is selected where the hash's top 24 bits, or its position itself, are below this
MEMORY: Final = 4  # which of the worker's memories is the request's, NO_MEMORY where it needs none
INTS: Final = 5

NO_MEMORY: Final = -1

BY_ENTROPY, BY_HASH, ALWAYS, BY_POSITION = 0, 1, 2, 3
# "quantile" is by entropy too: only its threshold is another.
SELECTOR_CODES: Final = {
    "entropy": BY_ENTROPY,
    "quantile": BY_ENTROPY,
    "random": BY_HASH,
    "all": ALWAYS,
    "first": BY_POSITION,
}

SELECTORS: Final = frozenset(SELECTOR_CODES.values())

EVERYWHERE, THINKING, ANSWER = 0, 1, 2
SCOPES: Final = {"all": EVERYWHERE, "thinking": THINKING, "answer": ANSWER}
NO_DELIMITERS: Final = (-1, -1)


@dataclass(frozen=True)
class EncodedRequest:
    """One request as numbers."""

    floats: tuple[float, ...]  # a row of the float table
    kind: int
    select: int
    cutoff: int
    scope: int
    delimiters: tuple[int, int]  # NO_DELIMITERS unless the scope needs them

    def ints(self, seed: int | None) -> tuple[int, ...]:
        """Return the row of the integer table for the sequence with this seed, without a memory."""
        return self.kind, self.select, placebo_key(seed or 0), self.cutoff, NO_MEMORY

    @property
    def remembers(self) -> bool:
        """Return whether what is done to a token depends on earlier entropies: the request needs a memory."""
        return (
            self.floats[QUANTILE] != NO_QUANTILE
            or self.floats[LOWER_SHARE] < 1.0
            or self.floats[GUARD_NATS] != NO_GUARD
        )

    def packed(self) -> list[float | int]:
        """Return all numbers as one flat list, for a request's extra arguments in vLLM."""
        return [*self.floats, self.kind, self.select, self.cutoff, self.scope, *self.delimiters]

    @classmethod
    def unpacked(cls, numbers: Sequence[float | int]) -> EncodedRequest:
        """Return the request that `packed` turned into a list; nothing is checked."""
        kind, select, cutoff, scope, start_id, end_id = (int(number) for number in numbers[FLOATS:])
        return cls(tuple(numbers[:FLOATS]), kind, select, cutoff, scope, (start_id, end_id))


PACKED: Final = FLOATS + 6  # numbers in all


def encode(steering: Steering, temperature: float, default_threshold_nats: float) -> EncodedRequest:
    """Encode an admitted steering for a request sampled at `temperature` (> 0).

    Args:
        steering: with its delimiters, where its scope needs them.
        temperature: of the request, as the sampler will divide by it.
        default_threshold_nats: where the steering names no threshold.
    """
    threshold = default_threshold_nats if steering.threshold_nats is None else steering.threshold_nats
    other = steering.temperatures(temperature).other
    assert other is not None, "other tokens have a fixed temperature"
    match steering.probe_temperature:
        case None:
            probe = NOWHERE
        case "applied":
            probe = APPLIED
        case number:
            probe = number
    guard = steering.guard_mean_entropy_nats
    memory = (
        (steering.quantile or DEFAULT_QUANTILE) if steering.select == "quantile" else NO_QUANTILE,
        1.0 - (steering.hysteresis or 0.0),
        NO_GUARD if guard is None else guard,
        float(steering.guard_window_tokens or DEFAULT_GUARD_WINDOW_TOKENS),
    )
    parameters = steering.parameters(temperature)
    unused = (0.0,) * (PARAMETERS - len(parameters))
    delimiters = NO_DELIMITERS
    if steering.scope != "all":
        assert steering.thinking_start_id is not None
        assert steering.thinking_end_id is not None
        delimiters = steering.thinking_start_id, steering.thinking_end_id
    return EncodedRequest(
        floats=(threshold, temperature, other, factor(temperature, other), probe, *memory, *parameters, *unused),
        kind=steering.kind,
        select=SELECTOR_CODES[steering.select],
        cutoff=steering.first_tokens or round((steering.fork_rate or 0.0) * 2**24),
        scope=SCOPES[steering.scope],
        delimiters=delimiters,
    )


def factor(request_t: float, steered_t: float) -> float:
    """Return the number that a row of logits is multiplied by to be sampled at `steered_t`: T / T', 0 if T' is 0."""
    return 0.0 if steered_t == 0.0 else request_t / steered_t


def placebo_key(seed: int) -> int:
    """Return the 32 bits, as a signed int32, that with the position decide which tokens `select: "random"` selects."""
    digest = hashlib.blake2b(f"steerdec placebo {seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)
