"""Tokens/s without the plugin, idle, steering, and with telemetry: the arms take turns at the steps of one batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from steerdec.benchmarks.engine import overhead
from steerdec.check.engine import Engine
from steerdec.check.part import Reporter
from steerdec.check.results import Result, Skip, at_least

REQUESTS: Final = 64
FEWEST_BATCHES: Final = 3
MOST_BATCHES: Final = 160  # where a step takes a few milliseconds
BUDGET_S: Final = 90.0
# Tokens/s as a share of those without the plugin.
LIMITS: Final = {
    "cuda": {"idle": 0.998, "steering": 0.995, "steering and telemetry": 0.995},
    "cpu": {"idle": 0.998, "steering": 0.99, "steering and telemetry": 0.99},
}
NAMES: Final = {"idle": "speed: idle", "steering": "speed: steering", "steering and telemetry": "speed: with telemetry"}


def results(reporter: Reporter, engine: Engine) -> Iterator[Result]:
    """Measure until the time is up, and judge the intervals."""
    if reporter.settings.interpreted:
        raise Skip("Triton's interpreter runs the kernels, and its speed says nothing")
    if engine.elsewhere:
        raise Skip(engine.elsewhere)
    if engine.config.speculative_config is not None:
        raise Skip("under speculative decoding a step has no fixed number of tokens")
    stepped = overhead.Engine(engine.llm)
    # All requests are to be in the batch from its first step on, which reads their prompts.
    prompt_tokens = len(engine.llm.get_tokenizer().encode(overhead.PROMPT.format(i=100, j=9)))
    at_once = engine.config.scheduler_config.max_num_batched_tokens // prompt_tokens
    n, tokens = min(REQUESTS, engine.at_once, at_once), 25 if reporter.settings.quick else 49
    generator = np.random.default_rng(0)
    batches: list[overhead.Turns] = []
    began_s = time.monotonic()
    most = FEWEST_BATCHES if reporter.settings.quick else MOST_BATCHES
    while len(batches) < FEWEST_BATCHES + 1 or (time.monotonic() - began_s < BUDGET_S and len(batches) < most + 1):
        reporter.progress(f"tokens/s: batch {len(batches)} (the first warms up)")
        batches.append(overhead.batch_of_turns(stepped, engine.pool, f"{len(batches)}", n, tokens, generator))
    costs = {cost.arm: cost for cost in overhead.compared(batches[1:], n)}
    limits = LIMITS["cuda" if engine.config.device_config.device_type == "cuda" else "cpu"]
    for arm, name in NAMES.items():
        yield _result(name, costs[arm], costs["no plugin"].tokens_per_s, limits[arm], n)


def _result(name: str, cost: Any, without: float, limit: float, requests: int) -> Result:
    low, high = cost.ratio_ci95
    return Result(
        check=name,
        measured=f"{cost.ratio:.4f} ({low:.4f} to {high:.4f}) of {without:,.0f} tokens/s without the plugin",
        limit=f"at least {limit:g}",
        status=at_least(limit, (low, high)),
        figures={
            "ratio": cost.ratio,
            "ratio_ci95": [low, high],
            "tokens_per_s": cost.tokens_per_s,
            "steps": cost.steps,
            "requests": requests,
            "share_inside": cost.share_inside,
        },
    )
