"""Batches of mixed requests that enter and leave vLLM's V2 engine, a third of them by an abort."""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.gpu.spec_decode import rejection_sampler

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_engine import CLOSE, OPEN, Asked, Engine

SCOPED = {"thinking_start_id": OPEN, "thinking_end_id": CLOSE}
STEERINGS: list[dict[str, Any]] = [
    {"fork_temperature": 1.7, "other_temperature": 0.5, "threshold_nats": 1.2},
    {"fork_temperature": 0.0, "other_temperature": 2.0, "threshold_nats": 1.2},
    {"select": "random", "fork_rate": 0.4, "fork_temperature": 0.5},
    {"select": "first", "first_tokens": 5, "fork_temperature": 1.9},
    {"select": "all", "fork_temperature": 1.4},
    {"policy": "dynatemp"},
    {"policy": "edt"},
    {"policy": "entropy_target", "delta_nats": 0.3},
    {"policy": "p_less", "fork_temperature": 2.0, "other_temperature": 0.6},
    {"policy": "uniform_top_k", "k": 7, "threshold_nats": 1.2},
    {"select": "all", "fork_temperature": 0.6, "scope": "thinking"} | SCOPED,
    {"fork_temperature": 1.6, "threshold_nats": 1.0, "scope": "answer"} | SCOPED,
    {"select": "quantile", "fork_temperature": 1.6, "other_temperature": 0.5, "hysteresis": 0.1},
    {"select": "all", "fork_temperature": 1.6, "guard_mean_entropy_nats": 1.5, "guard_window_tokens": 6},
    {"select": "quantile", "quantile": 0.5, "guard_mean_entropy_nats": 1.5, "guard_window_tokens": 4} | SCOPED,
]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"top_p": 0.8},
    {"top_k": 12},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.5},
    {"logprobs": 3},
    {"allowed_token_ids": [OPEN, CLOSE, *range(64, 120)]},
]
ABORTED = 1 / 3  # of the requests
STEERED = 0.8


def crowded(folder: Path, lanes: telemetry.LaneFile, at_once: int = 8) -> Engine:
    """An engine with too few blocks for its requests, which prefills long prompts in parts."""
    few = {"num_gpu_blocks_override": at_once + 1, "block_size": 32, "max_num_seqs": at_once, "max_model_len": 128}
    parts = {"max_num_batched_tokens": 4 * at_once, "enable_chunked_prefill": True}
    return Engine(v2_engine.started(folder, lanes, **few, **parts), lanes)


@dataclass
class Episode:
    """What came of its requests."""

    requests: int = 0
    aborted: int = 0
    preempted: int = 0
    tokens: int = 0  # whose records were compared
    resumed_with_memory: set[str] = field(default_factory=set)  # requests that were preempted after a token
    stopped: int = 0  # requests whose steering the guard turned off
    wrong: list[str] = field(default_factory=list)


def ask_at_random(
    engine: Engine, rng: random.Random, most_tokens: int, samplings: Sequence[dict[str, Any]]
) -> tuple[Asked, int | None]:
    """A request of any kind, and after how many tokens it is to be aborted."""
    shared = [OPEN, *[70] * 33] if rng.random() < 0.4 else []  # a whole block of the prefix cache
    prompt = [*shared, *(rng.choice([OPEN, CLOSE, *range(64, 120)]) for _ in range(rng.randint(1, 40)))]
    steering = rng.choice(STEERINGS) if rng.random() < STEERED else None
    tokens = rng.randint(1, min(most_tokens, 128 - len(prompt)))
    sampling = {"seed": rng.randrange(2**40), "max_tokens": tokens} | rng.choice(samplings)
    stop = rng.randint(1, (tokens + 1) // 2) if rng.random() < ABORTED else None
    return engine.ask(prompt, steering, **sampling), stop


def episode(
    engine: Engine,
    seed: int,
    *,
    requests: int | None = None,
    tokens: int | None = None,
    most_tokens: int = 24,
    samplings: Sequence[dict[str, Any]] = SAMPLINGS,
) -> Episode:
    """Let requests come until there were so many, or so many tokens of theirs; every row and record is compared."""
    rng, done = random.Random(seed), Episode()
    at_once = engine.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
    live: list[tuple[Asked, int | None]] = []

    def more() -> bool:
        return (requests is not None and done.requests < requests) or (tokens is not None and done.tokens < tokens)

    with engine.watched(), preemptions(done, engine):
        while live or more():
            while len(live) < at_once and more() and rng.random() < 0.9:
                live.append(ask_at_random(engine, rng, most_tokens, samplings))
                done.requests += 1
            engine.step()
            for one, stop in [*live]:
                if one.finished is None and stop is not None and len(one.tokens) >= stop:
                    engine.abort(one)
                    done.aborted += 1
                if one.finished is not None:
                    live.remove((one, stop))
                    leave(engine, one, done)
    return done


def leave(engine: Engine, one: Asked, done: Episode) -> None:
    """Compare the records of a request that ended, and give its lane back."""
    if one.lane is not None:
        done.wrong += engine.wrong_records(one)
        done.tokens += len(one.tokens)
        done.stopped += bool(one.lane.read(0, len(one.tokens)).stopped.any())
        engine.pool.take_back([one.lane], aborted=one.finished == "abort")
    del engine.asked[one.name]


@contextmanager
def preemptions(done: Episode, engine: Engine) -> Iterator[None]:
    """Count them."""
    original = Scheduler._preempt_request

    def counted(scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        done.preempted += 1
        one = engine.asked.get(request.request_id.partition("-")[0])
        if one is not None and one.steering is not None and one.encoded.remembers and one.tokens:
            done.resumed_with_memory.add(one.name)
        return original(scheduler, request, *args, **kwargs)

    Scheduler._preempt_request = counted
    try:
        yield
    finally:
        Scheduler._preempt_request = original


@contextmanager
def drafts_counted() -> Iterator[dict[str, int]]:
    """Count drafts that were judged, and those that were accepted."""
    found = {"drafts": 0, "accepted": 0}
    original = rejection_sampler.RejectionSampler.__call__

    def called(self: Any, logits: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, logits, batch, *args, **kwargs)
        found["drafts"] += int(batch.num_draft_tokens)
        found["accepted"] += int((out.num_sampled - 1).clamp(min=0).sum())
        return out

    rejection_sampler.RejectionSampler.__call__ = called
    try:
        yield found
    finally:
        rejection_sampler.RejectionSampler.__call__ = original
