"""Steering under n-gram speculative decoding in vLLM's whole V2 engine.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
import random
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.v1.worker.gpu.spec_decode import rejection_sampler

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_engine import CLOSE, OPEN, Engine

DRAFTS = 3


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=257) as file:
        yield file


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, lane_file: telemetry.LaneFile) -> Engine:
    folder = tmp_path_factory.mktemp("v2") / "model"
    ngram = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 2}
    return Engine(v2_engine.started(folder, lane_file, speculative_config=ngram, max_num_seqs=8), lane_file)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Drafts that were judged, and tokens that were sampled where there were drafts."""
    found = {"drafts": 0, "accepted": 0}
    original = rejection_sampler.RejectionSampler.__call__

    def called(self: Any, logits: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, logits, batch, *args, **kwargs)
        found["drafts"] += int(batch.num_draft_tokens)
        found["accepted"] += int((out.num_sampled - 1).clamp(min=0).sum())
        return out

    monkeypatch.setattr(rejection_sampler.RejectionSampler, "__call__", called)
    return found


def prompt(rng: random.Random) -> list[int]:
    """One in which pairs of tokens come again, so that there is something to draft from."""
    phrase = [rng.choice([OPEN, CLOSE, *range(64, 75)]) for _ in range(6)]
    return phrase * 3


def test_zero_temperature_everywhere_is_greedy_under_drafts(engine: Engine, counted: dict[str, int]) -> None:
    rng = random.Random(4)
    prompts = [prompt(rng) for _ in range(6)]
    greedy = [engine.ask(p, None, temperature=0.0, max_tokens=24) for p in prompts]
    engine.run()
    zero = {"fork_temperature": 0.0, "other_temperature": 0.0}
    steered = [engine.ask(p, zero, temperature=1.0, seed=i, max_tokens=24) for i, p in enumerate(prompts)]
    engine.run()
    assert [one.tokens for one in steered] == [one.tokens for one in greedy]
    assert counted["accepted"] > 0
