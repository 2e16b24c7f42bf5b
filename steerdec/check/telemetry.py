"""Telemetry against the full log-probabilities that vLLM reports for the same steps, and its records counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from steerdec.check.engine import ENTRIES, EVERY_LOGPROB, Engine, entropies_nats
from steerdec.check.part import Reporter
from steerdec.check.results import Result, judged

THRESHOLD_NATS: Final = 0.6
STEERING: Final = {"fork_temperature": 1.5, "other_temperature": 0.5, "threshold_nats": THRESHOLD_NATS}
OFF_NATS: Final = 2e-4  # vLLM's log-probabilities are float32


def results(reporter: Reporter, engine: Engine) -> Iterator[Result]:
    """Compare a few requests token by token, and count the records of many."""
    vocab = engine.config.model_config.get_vocab_size()
    small = reporter.settings.quick or reporter.settings.interpreted
    tokens = 6 if small else 12
    n = int(np.clip(ENTRIES // (vocab * tokens), 2, 16))
    reporter.progress(f"telemetry against all log-probabilities: {n} requests of {tokens} tokens")
    sampling: dict[str, Any] = {"temperature": 1.0, "max_tokens": tokens, "ignore_eos": True} | EVERY_LOGPROB
    requests = [engine.recorded(STEERING, seed=i, **sampling) for i in range(n)]
    outputs = engine.generate(engine.prompts(n), [params for params, _ in requests])
    compared = wrong = 0
    worst = 0.0
    for (_, lane), output in zip(requests, outputs, strict=True):
        records = lane.read(0, len(output.token_ids))
        expected = entropies_nats(output.logprobs)
        off = np.abs(records.entropy_nats - expected)
        worst = max(worst, float(np.nanmax(off, initial=0.0)), float(np.isnan(off).any()))
        sure = np.abs(expected - THRESHOLD_NATS) > OFF_NATS
        fork = expected > THRESHOLD_NATS
        wrong += int((records.fork != fork)[sure].sum())
        wrong += int((records.temperature != np.where(records.fork, np.float32(1.5), np.float32(0.5))).sum())
        compared += len(expected)
    engine.pool.take_back([lane for _, lane in requests], aborted=False)
    yield judged(
        "telemetry: entropy and fork",
        f"{compared} tokens: H off by at most {worst:.1e} nats, {wrong} forks or temperatures wrong",
        f"{OFF_NATS:g} nats, 0 wrong",
        worst <= OFF_NATS and wrong == 0 and compared > 0,
        tokens=compared,
        worst_nats=worst,
        wrong=wrong,
    )
    yield _counted(reporter, engine, 8 if small else 64, 12 if small else 48)


def _counted(reporter: Reporter, engine: Engine, n: int, tokens: int) -> Result:
    """Count the records of requests of different lengths; half of them are never steered."""
    n = min(n, engine.at_once)
    reporter.progress(f"telemetry: records of {n} requests")
    lengths = [1 + (i * tokens) // n for i in range(n)]
    requests = [
        engine.recorded(STEERING, temperature=1.0, seed=i, max_tokens=length, ignore_eos=True)
        for i, length in enumerate(lengths)
    ]
    outputs = engine.generate(engine.prompts(n), [params for params, _ in requests])
    sampled = recorded = wrong = 0
    for (_, lane), output in zip(requests, outputs, strict=True):
        known = np.isfinite(lane.read(0, len(output.token_ids)).entropy_nats)
        sampled += len(output.token_ids)
        recorded += int(known.sum())
        # Under speculation the engine may be further than what it returned.
        beyond = lane.recorded_tokens() > len(output.token_ids) and engine.config.speculative_config is None
        wrong += int(not known.all() or beyond)
    engine.pool.take_back([lane for _, lane in requests], aborted=False)
    return judged(
        "telemetry: one record per token",
        f"{recorded:,} records of {sampled:,} tokens, {wrong} of {n} requests wrong",
        "all, 0 wrong",
        wrong == 0 and recorded == sampled > 0,
        tokens=sampled,
        records=recorded,
        requests_wrong=wrong,
    )
