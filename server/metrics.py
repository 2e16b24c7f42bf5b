"""Counts of steered requests, on vLLM's own /metrics page."""

from __future__ import annotations

import numpy as np
from prometheus_client import Counter, Histogram

from steerdec.telemetry.lanes import Records

BOUNDS_NATS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.672, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

REQUESTS = Counter("steerdec_requests", "Steered requests that were answered.")
TOKENS = Counter("steerdec_tokens", "Generated tokens of steered requests with telemetry.")
FORKS = Counter("steerdec_forks", "Tokens among them that were steered as forks.")
ENTROPY = Histogram("steerdec_entropy_nats", "Entropy at temperature 1 of those tokens.", buckets=BOUNDS_NATS)


def count(choices: list[Records]) -> None:
    """Add one answered request's tokens."""
    REQUESTS.inc()
    for records in choices:
        known = records.entropy_nats[np.isfinite(records.entropy_nats)]
        TOKENS.inc(len(records.fork))
        FORKS.inc(int(records.fork.sum()))
        _observe_all(known)


def _observe_all(values: np.ndarray) -> None:
    """Histogram.observe for each value at once: a call a token would cost a core at 10^5 tokens/s.

    Uses the histogram's own buckets (each counts its interval; the page accumulates), which work with
    several server processes too; tests/server/test_metrics.py pins that observe() gives the same page.
    """
    bucket = np.searchsorted(np.asarray(BOUNDS_NATS), values, side="left")  # upper bounds are inclusive
    for i, hits in enumerate(np.bincount(bucket, minlength=len(BOUNDS_NATS) + 1)):
        if hits:
            ENTROPY._buckets[i].inc(int(hits))
    ENTROPY._sum.inc(float(values.sum(dtype=np.float64)))
