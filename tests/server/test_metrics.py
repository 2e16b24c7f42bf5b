"""The bulk update of the entropy histogram against the histogram's own observe()."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from steerdec.server import metrics
from steerdec.vllm_plugin.private.prometheus_buckets import observe_all

MODEL = "a model"  # of no other test


def samples(histogram: Histogram) -> dict[tuple[str, str], float]:
    (family,) = histogram.collect()
    ours = (s for s in family.samples if s.labels.get("model_name", MODEL) == MODEL)
    return {(s.name, s.labels.get("le", "")): s.value for s in ours if not s.name.endswith("_created")}


def test_bulk_update_gives_the_page_that_observe_gives() -> None:
    values = np.array([0.0, 0.01, 0.010001, 0.672, 0.7, 5.9, 6.0, 6.1, 11.0])
    one_by_one = Histogram("steerdec_entropy_nats", "", buckets=metrics.BOUNDS_NATS, registry=CollectorRegistry())
    for value in values:
        one_by_one.observe(value)
    ours = metrics.ENTROPY.labels(MODEL)
    before = samples(metrics.ENTROPY)
    observe_all(ours, metrics.BOUNDS_NATS, values)
    after = samples(metrics.ENTROPY)
    added = {key: after[key] - before[key] for key in after}
    expected = samples(one_by_one)
    assert added.keys() == expected.keys()
    assert all(abs(added[key] - expected[key]) < 1e-9 for key in added)
