"""Counts of steered requests, on vLLM's own /metrics page, labeled with the model as vLLM's own are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter, Histogram

from steerdec.telemetry.lanes import Records
from steerdec.vllm_plugin.private.prometheus_buckets import observe_all

BOUNDS_NATS = (0.01, 0.05, 0.1, 0.2, 0.5, 0.672, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

MODEL = ("model_name",)

REQUESTS = Counter("steerdec_requests", "Steered requests that were answered.", MODEL)
TOKENS = Counter("steerdec_tokens", "Generated tokens of steered requests with telemetry.", MODEL)
FORKS = Counter("steerdec_forks", "Tokens among them that were steered as forks.", MODEL)
ENTROPY = Histogram("steerdec_entropy_nats", "Entropy at temperature 1 of those tokens.", MODEL, buckets=BOUNDS_NATS)


_model_name = ""  # a process serves one model


def begin(model_name: str) -> None:
    """Put the model's metrics on the page, at 0, so that the first request is seen as an increase."""
    global _model_name
    _model_name = model_name
    for metric in (REQUESTS, TOKENS, FORKS, ENTROPY):
        metric.labels(model_name)


def count(choices: Sequence[Records]) -> None:
    """Add one answered request's tokens."""
    REQUESTS.labels(_model_name).inc()
    for records in choices:
        known = records.entropy_nats[np.isfinite(records.entropy_nats)]
        TOKENS.labels(_model_name).inc(len(records.fork))
        FORKS.labels(_model_name).inc(int(records.fork.sum()))
        observe_all(ENTROPY.labels(_model_name), BOUNDS_NATS, known)
