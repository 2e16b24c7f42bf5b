"""Make seeds by hashing identifiers, never as `seed + i`."""

from __future__ import annotations

import hashlib
import json


def hashed_bits(*identifiers: object, bits: int = 53) -> int:
    """Return `bits` bits of blake2b over the identifiers as JSON, so that ("a", "bc") and ("ab", "c") differ."""
    digest = hashlib.blake2b(json.dumps(identifiers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)


def sample_seed(run_seed: int, problem_id: str, sample: int, replica: str = "") -> int:
    """Return 53 bits (exact in JSON everywhere), the same in every arm: common random numbers.

    They are hashed, because with `seed + i`, neighboring run seeds would share samples. `replica` names an arm, or a
    group of arms, that needs its own random numbers.
    """
    return hashed_bits("sample", run_seed, problem_id, sample, replica)
