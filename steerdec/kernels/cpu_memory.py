"""`steering.memory` on a CPU, compiled by numba: what the earlier tokens of a row's request make of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from steerdec.softmax.cpu import jit
from steerdec.steering import encoding
from steerdec.steering.memory import (
    FIRST_STEP,
    FLAGS,
    HIGH,
    LEAST_NATS,
    LEAST_STEP,
    LEVEL,
    MEAN,
    POSITION,
    STEP_OFFSET,
    STOPPED,
    TOKENS,
    WORDS,
)

_LEAST = np.float64(np.float32(LEAST_NATS))


@jit
def remembered(words: Any, numbers: Any, f: Any, position: Any, h: Any) -> Any:
    """Return the row's threshold, whether its H is high, and whether the guard has stopped; remember it.

    Args:
        words: the request's states, [ring * WORDS] int32.
        numbers: the same memory as float32.
        f: the request's row of the float table.
        position: of the token; where it is below 0, nothing is remembered.
        h: in nats; NaN if it is unknown.
    """
    ring = words.size // WORDS
    quantile = np.float64(f[encoding.QUANTILE])
    tokens, mean, flags = np.int64(0), np.float64(0.0), np.int64(0)
    level = np.float64(f[encoding.THRESHOLD])
    if quantile != encoding.NO_QUANTILE:
        level = max(level, _LEAST)
    if position > 0:
        entry = ((position - 1) % ring) * WORDS
        if words[entry + POSITION] == position:
            tokens, flags = np.int64(words[entry + TOKENS]), np.int64(words[entry + FLAGS])
            mean, level = np.float64(numbers[entry + MEAN]), np.float64(numbers[entry + LEVEL])
    threshold = level
    if not np.isnan(h):
        above = h > threshold
        high = above or (flags & HIGH != 0 and h > threshold * np.float64(f[encoding.LOWER_SHARE]))
        if quantile != encoding.NO_QUANTILE:
            eta = max(FIRST_STEP / (tokens + STEP_OFFSET), LEAST_STEP)
            level = np.float64(np.float32(max(level * np.exp(eta * (quantile - (0.0 if above else 1.0))), LEAST_NATS)))
        tokens = np.int64(tokens + 1)
        cap, window = np.float64(f[encoding.GUARD_NATS]), np.float64(f[encoding.GUARD_TOKENS])
        mean = np.float64(np.float32(mean + (h - mean) / min(np.float64(tokens), window)))
        stopped = flags & STOPPED != 0 or (cap != encoding.NO_GUARD and tokens >= window and mean > cap)
        flags = np.int64((HIGH if high else 0) | (STOPPED if stopped else 0))
    if position >= 0:
        entry = (position % ring) * WORDS
        words[entry + POSITION] = position + 1
        words[entry + TOKENS], words[entry + FLAGS] = tokens, flags
        numbers[entry + MEAN], numbers[entry + LEVEL] = mean, level
    return threshold, flags & HIGH != 0, flags & STOPPED != 0
