"""Steering under n-gram speculative decoding in vLLM's whole V2 engine.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter.

What is drawn under drafts is the second token of each request. The first is greedy, the same in all, and repeats the
prompt, so that a draft follows which the second token may or may not be.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_draws import AT_ONCE, DRAWS, FIRST_SEED, OFF, Case, assert_drawn, logits_after, telling
from tests.support.v2_engine import CLOSE, OPEN, Engine
from tests.support.v2_episodes import drafts_counted

DRAFTS = 2
# After a greedy first token.
HOT = Case({"select": "first", "first_tokens": 1, "fork_temperature": 0.0, "other_temperature": 1.6})


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=257) as file:
        yield file


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, lane_file: telemetry.LaneFile) -> Engine:
    folder = tmp_path_factory.mktemp("v2") / "model"
    ngram = {"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 2}
    return Engine(v2_engine.started(folder, lane_file, speculative_config=ngram, max_num_seqs=AT_ONCE), lane_file)


def prompt(rng: random.Random) -> list[int]:
    """One in which pairs of tokens come again, so that there is something to draft from."""
    phrase = [rng.choice([OPEN, CLOSE, *range(64, 75)]) for _ in range(6)]
    return phrase * 3


def test_zero_temperature_everywhere_is_greedy_under_drafts(engine: Engine) -> None:
    """Accepted and rejected: without a penalty the greedy text comes to one letter, and nearly every draft is right."""
    rng = random.Random(4)
    cases = [(prompt(rng), {"frequency_penalty": 2.0 * (i % 2)}) for i in range(12)]
    greedy = [engine.ask(p, None, temperature=0.0, max_tokens=24, **varied) for p, varied in cases]
    engine.run()
    zero = {"fork_temperature": 0.0, "other_temperature": 0.0}
    steered = [engine.ask(p, zero, temperature=1.0, seed=i, max_tokens=24, **v) for i, (p, v) in enumerate(cases)]
    with drafts_counted() as counted:
        engine.run()
    assert [one.tokens for one in steered] == [one.tokens for one in greedy]
    print(f"greedy under drafts: {counted}", flush=True)
    rejected = counted["drafts"] - counted["accepted"]
    assert counted["accepted"] > 20
    assert rejected > 20


# Greedy at every token, but for a guard: with the second token the mean exceeds the cap, and it is drawn at T.
GUARDED = {"select": "all", "fork_temperature": 0.0, "guard_mean_entropy_nats": 0.01, "guard_window_tokens": 2}


def called_for(engine: Engine) -> tuple[list[int], list[int], Any]:
    """A prompt after which the greedy token calls for a draft; that token and the draft; the next token's logits.

    The draft is likely, but not certain: it is accepted in some draws and rejected in others.
    """
    rng = random.Random(1)
    letters = [t for t, _ in logits_after(engine.llm, [[70, 71], [64, 90], [80, 65]])]
    prompts = []
    for _ in range(512):
        x, g, draft = rng.choice(range(60, 92)), rng.choice(letters)[0], rng.choice(range(64, 75))
        prompts.append([x, g, draft, rng.choice(range(60, 92)), x])
    best, most = None, 0.0
    for prompt, (tokens, rows) in zip(prompts, logits_after(engine.llm, prompts, 2), strict=True):
        p = HOT.expected(rows[1], position=1)
        if tokens[0] == prompt[1] and 0.1 < p[prompt[2]] < 0.6 and (power := telling(HOT, rows[1], position=1)) > most:
            best, most = (prompt, prompt[1:3], rows[1]), power
    assert best is not None
    return best


@pytest.mark.parametrize("case", [HOT, pytest.param(Case(GUARDED, 1.6), marks=pytest.mark.thorough)])
def test_tokens_after_a_draft_follow_the_references_distribution(engine: Engine, case: Case) -> None:
    prompt, (greedy, draft), row = called_for(engine)
    p, near = (HOT.expected(row, position=1, off=off) for off in (1.0, OFF))  # both cases draw it at T' = 1.6
    params = [case.params(max_tokens=2, seed=FIRST_SEED + i) for i in range(DRAWS)]
    with drafts_counted() as counted:
        answers = engine.llm.generate([{"prompt_token_ids": prompt}] * DRAWS, params, use_tqdm=False)
    tokens = np.array([answer.outputs[0].token_ids for answer in answers])
    assert (tokens[:, 0] == greedy).all()
    assert counted["drafts"] >= DRAWS
    assert counted["accepted"] >= 0.05 * DRAWS
    print(f"{counted} p(draft) {p[draft]:.3f}, drawn in {np.mean(tokens[:, 1] == draft):.3f}")
    assert_drawn("after a draft", tokens[:, 1], p, near)
