"""Counts of steered requests, on vLLM's own /metrics page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter, Histogram

from steerdec.telemetry.lanes import Records
from steerdec.vllm_plugin.private.prometheus_buckets import observe_all

BOUNDS_NATS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.672, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

REQUESTS = Counter("steerdec_requests", "Steered requests that were answered.")
TOKENS = Counter("steerdec_tokens", "Generated tokens of steered requests with telemetry.")
FORKS = Counter("steerdec_forks", "Tokens among them that were steered as forks.")
ENTROPY = Histogram("steerdec_entropy_nats", "Entropy at temperature 1 of those tokens.", buckets=BOUNDS_NATS)


def count(choices: Sequence[Records]) -> None:
    """Add one answered request's tokens."""
    REQUESTS.inc()
    for records in choices:
        known = records.entropy_nats[np.isfinite(records.entropy_nats)]
        TOKENS.inc(len(records.fork))
        FORKS.inc(int(records.fork.sum()))
        observe_all(ENTROPY, BOUNDS_NATS, known)
